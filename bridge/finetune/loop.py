"""The loop: steps, validation, log and snapshots."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.freezing import freeze, thaw
from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.finetune import snapshot
from bridge.finetune.batches import Batches, Images
from bridge.finetune.recipe import Recipe
from bridge.finetune.trunk import Cache, Cut, Features, Trunk


@dataclass(frozen=True)
class Objective:
    """What the loop makes small.

    Attributes:
        data, label: The input blobs.
        scores: The blob of class scores, for accuracy.
        losses: Blob -> weight in the sum.
        smoothing: Share of the target that all classes have alike.
    """

    data: str
    label: str
    scores: str
    losses: dict[str, float]
    smoothing: float = 0.0

    def __call__(self, values: dict[str, Any]) -> Any:
        """The loss, a scalar variable, from all blobs of a forward pass."""
        total = None
        for blob, weight in self.losses.items():
            term = values[blob] if weight == 1 else values[blob] * weight
            total = term if total is None else total + term
        if total is None:
            raise ModelError("the net has no loss")
        total = chainer.functions.reshape(total, ())
        if self.smoothing:
            even = -chainer.functions.mean(chainer.functions.log_softmax(values[self.scores]))
            total = (1 - self.smoothing) * total + self.smoothing * even
        return total


@dataclass
class Source:
    """Images of one split on their way into the net: straight, through the trunk, or from its cache."""

    images: Images
    objective: Objective
    trunk: Trunk | None = None
    cache: Cache | None = None
    draws: int = 1

    def get(self, indices: np.ndarray, epoch: int) -> Features:
        """The blobs that the trained part starts from, and the labels."""
        draw = epoch % self.draws if self.cache is not None else epoch
        if self.cache is not None:
            features = self.cache.rows(indices + draw * len(self.images))
        elif self.trunk is not None:
            features = self.trunk(self.images.get(indices, draw))
        else:
            features = {self.objective.data: self.images.get(indices, draw)}
        return {**features, self.objective.label: self.images.labels(indices).astype(np.int32)}


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with one set of frozen layers.

    Attributes:
        start: Its first iteration.
        frozen: Names of the frozen layers.
        prepare: Makes the cut and the two splits' sources, when the stage begins.
    """

    start: int
    frozen: tuple[str, ...]
    prepare: Callable[[], tuple[Cut | None, Source, Source | None]]


@dataclass
class Loop:
    """A run in progress.

    Attributes:
        chain, optimizer: What is trained, and how.
        recipe: Rates, seed, and batches per step.
        objective: The loss.
        batches: The steps' images.
        stages: In order of their starts, the first at 0.
        iterations: Steps in all.
        folder: Where log and snapshots go.
        set_rate: Tells the optimizer the learning rate.
        snapshot_every: Steps between snapshots, beside those at the end of an epoch.
        patience: Epochs without a better validation loss after which to stop; 0 is never.
        on_step: Called with the step's record, for a progress bar.
    """

    chain: NetChain
    optimizer: Any
    recipe: Recipe
    objective: Objective
    batches: Batches
    stages: list[Stage]
    iterations: int
    folder: Path
    set_rate: Callable[[float], None]
    snapshot_every: int = 0
    patience: int = 0
    on_step: Callable[[dict[str, Any]], None] = lambda record: None
    state: dict[str, Any] = field(default_factory=lambda: {"iteration": 0, "best": None, "best_epoch": -1})
    cut: Cut | None = None
    train: Source | None = None
    validation: Source | None = None

    def run(self, resume: bool) -> dict[str, Any]:
        """Train to the end.

        Args:
            resume: Go on from the snapshot, if there is one.

        Returns:
            The state at the end: iterations done, best validation loss and its epoch.

        Raises:
            ModelError: The loss is not a number any more.
        """
        path = self.folder / snapshot.NAME
        if resume and path.exists():
            self.state = snapshot.load(path, self.chain, self.optimizer)
        _truncate(self.folder / "log.jsonl", self.state["iteration"])
        self._enter([stage for stage in self.stages if stage.start <= self.state["iteration"]][-1])
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            try:
                while self.state["iteration"] < self.iterations and not self.state.get("stopped"):
                    self._iterate(log)
            except KeyboardInterrupt:
                self._snapshot(log)
                raise
        return self.state

    def _iterate(self, log: IO[str]) -> None:
        iteration = self.state["iteration"]
        for stage in self.stages[1:]:
            if stage.start == iteration:
                self._enter(stage)
        start = time.perf_counter()
        record = self._step(iteration)
        self.state["iteration"] = iteration + 1
        epoch_ends = (iteration + 1) * self.recipe.iter_size % self.batches.per_epoch == 0
        last = iteration + 1 == self.iterations
        if self.validation is not None and (epoch_ends or last):
            record.update(self._validate(record["epoch"]))
        log.write(json.dumps(record) + "\n")
        due = self.snapshot_every and (iteration + 1) % self.snapshot_every == 0
        if due or epoch_ends or last:
            self._snapshot(log)
        self.on_step({**record, "seconds": time.perf_counter() - start, "images": self.batches.size * self.recipe.iter_size, "iterations": self.iterations})

    def _step(self, iteration: int) -> dict[str, Any]:
        """One update; what the log says of it."""
        seed = int(np.random.SeedSequence([self.recipe.seed, 4, iteration]).generate_state(1)[0])
        np.random.seed(seed)  # noqa: NPY002  # Chainer's dropout draws from the global state
        if self.chain.xp is not np:
            self.chain.xp.random.seed(seed)
        self.set_rate(self.recipe.rate(iteration))
        self.chain.cleargrads()
        total, right, seen, epoch = 0.0, 0, 0, 0
        for part in range(self.recipe.iter_size):
            batch = self.batches[iteration * self.recipe.iter_size + part]
            values, label = self._forward(self._source().get(batch.indices, batch.epoch))
            loss = self.objective(values)
            loss.backward()
            total += float(loss.array)
            right += _right(values[self.objective.scores].array, label)
            seen, epoch = seen + label.size, batch.epoch
        total /= self.recipe.iter_size
        if not math.isfinite(total):
            raise ModelError(
                f"the loss is {total} at iteration {iteration}",
                where=str(self.folder),
                hint="lower the learning rate; the last snapshot is kept",
            )
        self.optimizer.update()
        rate = self.recipe.rate(iteration)
        return {"iteration": iteration, "epoch": epoch, "loss": total, "accuracy": right / max(1, seen), "lr": rate}

    def _forward(self, features: Features) -> tuple[dict[str, Any], Any]:
        xp = self.chain.xp
        fed = {name: xp.asarray(values) for name, values in features.items()}
        return self.chain.run(fed, start=self.cut.index if self.cut else 0), fed[self.objective.label]

    def _validate(self, epoch: int) -> dict[str, float]:
        if self.validation is None:
            return {}
        loss, accuracy, _ = self.evaluate(self.validation)
        if self.state["best"] is None or loss < self.state["best"]:
            self.state.update(best=loss, best_epoch=epoch)
            snapshot.save(self.folder / "best.npz", self.chain, self.optimizer, self.state)
        elif self.patience and epoch - self.state["best_epoch"] >= self.patience:
            self.state["stopped"] = True
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def evaluate(self, source: Source) -> tuple[float, float, np.ndarray]:
        """Loss, accuracy, and the predicted class of every image, in test mode."""
        loss, predicted = 0.0, []
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            for start in range(0, len(source.images), self.batches.size):
                indices = np.arange(start, min(start + self.batches.size, len(source.images)))
                values, label = self._forward(source.get(indices, 0))
                loss += float(self.objective(values).array) * label.size
                predicted.append(_classes(values[self.objective.scores].array))
        found = np.concatenate(predicted)
        right = found == source.images.labels(np.arange(len(source.images)))
        return loss / max(1, found.size), float(right.mean()) if found.size else 0.0, found

    def _snapshot(self, log: IO[str]) -> None:
        log.flush()
        snapshot.save(self.folder / snapshot.NAME, self.chain, self.optimizer, self.state)

    def _source(self) -> Source:
        if self.train is None:
            raise ModelError("no stage of the run has begun")
        return self.train

    def _enter(self, stage: Stage) -> None:
        """Begin a stage: what it freezes, and where the trained part starts."""
        thaw(self.chain, "*")
        if stage.frozen:
            freeze(self.chain, *stage.frozen)
        self.cut, self.train, self.validation = stage.prepare()


def _classes(scores: Any) -> np.ndarray:
    return np.asarray(chainer.backends.cuda.to_cpu(scores.argmax(axis=1).reshape(-1)))


def _right(scores: Any, label: Any) -> int:
    return int((scores.argmax(axis=1).reshape(-1) == label.reshape(-1)).sum())


def _truncate(path: Path, iterations: int) -> None:
    """Drop from the log what came after the snapshot."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)[:iterations]
    with open(path, "r+b") as file:
        file.truncate(sum(map(len, lines)))
