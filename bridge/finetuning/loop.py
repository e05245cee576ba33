"""The loop: steps, validation, log and snapshots."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.freezing import is_frozen
from bridge.chain.functions import chainer
from bridge.errors import FormatError, ModelError, UsageError
from bridge.finetuning import snapshot
from bridge.finetuning.batches import Batches
from bridge.finetuning.cache import Features
from bridge.finetuning.interrupts import Interrupts
from bridge.finetuning.logfile import LogFile
from bridge.finetuning.objective import Judged, Objective
from bridge.finetuning.optimizers import Updater
from bridge.finetuning.parallel import Ranks
from bridge.finetuning.recipe import Recipe
from bridge.finetuning.sources import Source
from bridge.finetuning.trunk import Cut

_SPARE = 50
"""A snapshot that nobody asked for waits until so many times what the last one took have passed."""
_MOMENT = 2.0
"""Seconds that it waits at least."""
_DISK = 5e8
"""Bytes per second that the first one is expected to take."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with one set of frozen layers.

    Attributes:
        start: Its first iteration.
        freeze: Freezes them, and thaws all others.
        prepare: Makes the cut and the two splits' sources, when the stage begins.
    """

    start: int
    freeze: Callable[[], None]
    prepare: Callable[[], tuple[Cut | None, Source, Source | None]]


@dataclass
class State:
    """Where a run is; what a snapshot holds beside arrays.

    Attributes:
        iteration: Steps that are done.
        best: The lowest validation loss; ``None`` before the first.
        best_epoch: Its epoch.
        stopped: Whether the run ended early.
        data: Digests of the data that the run is on.
    """

    iteration: int = 0
    best: float | None = None
    best_epoch: int = -1
    stopped: bool = False
    data: list[str] = field(default_factory=list)


@dataclass
class Loop:
    """A run in progress.

    Attributes:
        chain: What is trained.
        updater: The optimizer, and each parameter's rate.
        recipe: Rates, seed, and batches per step.
        objective: The loss.
        batches: The steps' images.
        stages: In order of their starts, the first at 0.
        iterations: Steps in all.
        folder: Where log and snapshots go.
        ranks: The processes that train together.
        random: Whether the net draws random numbers in training.
        half: Whether blobs are float16.
        snapshot_every: Steps between snapshots; 0 is now and then.
        patience: Epochs without a better validation loss after which to stop; 0 is never.
        on_step: Called with the step's record, for a progress bar.
    """

    chain: NetChain
    updater: Updater
    recipe: Recipe
    objective: Objective
    batches: Batches
    stages: list[Stage]
    iterations: int
    folder: Path
    ranks: Ranks = field(default_factory=Ranks)
    random: bool = True
    half: bool = False
    snapshot_every: int = 0
    patience: int = 0
    on_step: Callable[[dict[str, Any]], None] | None = None
    state: State = field(default_factory=State)
    best: dict[str, np.ndarray] = field(default_factory=dict)
    cut: Cut | None = None
    train: Source | None = None
    validation: Source | None = None

    def __post_init__(self) -> None:
        self.stages[-1].freeze()
        self.trained = snapshot.Trained(self.chain)
        self._params: list[Any] = []
        # where a snapshot cannot hold the generator's state, each step begins with one of its own
        self._reseeds = self.random and (self.chain.xp is not np or self.ranks.size > 1)
        self._unsaved_best = False
        self._snapshot_due = 0.0

    def run(self, resume: bool) -> State:
        """Train to the end.

        Args:
            resume: Go on from the snapshot, if there is one.

        Returns:
            The state at the end.

        Raises:
            ModelError: The loss is not a number any more.
            UsageError: There is not enough memory.
            OutputError: Log or snapshot cannot be written.
            KeyboardInterrupt: A signal asked for the end; a snapshot holds all steps that were done.
        """
        self.seed(0)
        if resume:
            self._restore()
        self._enter([stage for stage in self.stages if stage.start <= self.state.iteration][-1])
        self._next_snapshot(2 * self.trained.nbytes / _DISK)
        with (
            chainer.using_config("type_check", False),  # the net's shapes were inferred and fit
            Interrupts() as interrupts,
            LogFile(self.folder, self.state.iteration, self.ranks.first) as log,
        ):
            try:
                while self.state.iteration < self.iterations and not self.state.stopped:
                    if self._iterate(log, interrupts.asked):
                        self._save(log)
                        raise KeyboardInterrupt("all steps are kept; --resume goes on")
            except MemoryError as error:
                raise UsageError(
                    f"not enough memory in iteration {self.state.iteration}: {str(error) or 'no more is to be had'}",
                    where=str(self.folder),
                    hint="the last snapshot is kept; a new run may take a smaller --batch-size",
                ) from None
            self._save(log)
        return self.state

    def _iterate(self, log: LogFile, interrupted: bool) -> bool:
        """One step and what follows it; returns whether a rank was asked to stop."""
        iteration = self.state.iteration
        for stage in self.stages[1:]:
            if stage.start == iteration:
                self._enter(stage)
        start = time.perf_counter()
        record, stop = self._step(iteration, interrupted)
        self.state.iteration = iteration + 1
        epoch_ends = self.batches.epoch_ends(iteration, self.recipe.iter_size)
        if epoch_ends or iteration + 1 == self.iterations:
            record.update(self._validate(record["epoch"]))
        now = time.perf_counter()
        log.write(record, now)
        if self._is_due(iteration + 1, epoch_ends, now):
            self._save(log)
        if self.on_step is not None:
            images = self.batches.size * self.recipe.iter_size * self.ranks.size
            self.on_step({**record, "seconds": now - start, "images": images, "iterations": self.iterations})
        return stop

    def _step(self, iteration: int, interrupted: bool) -> tuple[dict[str, Any], bool]:
        """One update; what the log says of it, and whether a rank was asked to stop."""
        rate = self.recipe.rate(iteration)
        if self._reseeds:
            self.seed(iteration)
        for param in self._params:
            param.cleargrad()
        source, loss, right, seen, epoch = self._source(), 0.0, 0, 0, 0
        for part in range(self.recipe.iter_size):
            batch = self.batches[iteration * self.recipe.iter_size + part]
            values, label = self._forward(source.get(batch.indices, batch.epoch))
            value = self.objective(values)
            predicted = self.objective.predicted(values)
            del values  # the graph keeps what the backward pass wants
            value.backward(loss_scale=self.updater.loss_scale)
            loss += float(value.array)
            if predicted is not None:
                right += int((predicted == label).sum())
            seen, epoch = seen + label.size, batch.epoch
        loss, right, seen, stop = self.ranks.total(loss, right, seen, interrupted)  # type: ignore[assignment]
        loss /= self.recipe.iter_size * self.ranks.size
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} in iteration {iteration}",
                where=str(self.folder),
                hint="check that images are scaled as the net knows them (--scale, --mean), lower the learning rate, "
                "or limit the gradients; the last snapshot is kept",
            )
        self.ranks.average_gradients(self.chain)
        self.updater.update(rate)
        record = {"iteration": iteration, "epoch": epoch, "loss": loss, "lr": rate}
        if self.objective.scores is not None:
            record["accuracy"] = right / max(1, seen)
        return record, bool(stop)

    def seed(self, iteration: int) -> None:
        """Make what Chainer draws from here on follow from the seed and the iteration."""
        mixed = (self.recipe.seed * 1_000_003 + iteration * 9_176 + self.ranks.rank) % 2**32
        self.chain.xp.random.seed(mixed)

    def _forward(self, features: Features) -> tuple[dict[str, Any], Any]:
        xp, label = self.chain.xp, self.objective.label
        if xp is not np:
            features = {name: xp.asarray(values) for name, values in features.items()}
        if self.half:
            features = {name: x if name == label else x.astype(np.float16) for name, x in features.items()}
        return self.chain.run(features, start=self.cut.index if self.cut else 0), features[label]

    def _validate(self, epoch: int) -> dict[str, float]:
        self.ranks.average_statistics(self.chain)
        if self.validation is None:
            return {}
        judged = self.evaluate(self.validation)
        if self.state.best is None or judged.loss < self.state.best:
            self.state.best, self.state.best_epoch = judged.loss, epoch
            self.best, self._unsaved_best = self.trained.copies(), True
        elif self.patience and epoch - self.state.best_epoch >= self.patience:
            self.state.stopped = True
        found = {"validation_loss": judged.loss}
        if judged.accuracy is not None:
            found["validation_accuracy"] = judged.accuracy
        return found

    def evaluate(self, source: Source) -> Judged:
        """What a split is found to be, in test mode; the ranks' predictions are put together in rank 0."""
        loss, right, predicted = 0.0, 0, []
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            for start in range(0, len(source), self.batches.size):
                indices = np.arange(start, min(start + self.batches.size, len(source)))
                values, label = self._forward(source.get(indices, 0))
                loss += float(self.objective(values).array) * label.size
                found = self.objective.predicted(values)
                if found is not None:
                    right += int((found == label).sum())
                    predicted.append(np.asarray(chainer.backends.cuda.to_cpu(found)))
        loss, right, seen = self.ranks.total(loss, right, len(source))  # type: ignore[assignment]
        mine = np.concatenate(predicted) if predicted else np.zeros(0, int)
        every = self.ranks.collected((source.labels().astype(int), mine))
        true, guessed = (np.concatenate(parts) for parts in zip(*every, strict=True)) if every else (mine, mine)
        return Judged(loss / max(1, seen), right / max(1, seen) if predicted else None, true, guessed, len(mine))

    # -- never lost ------------------------------------------------------------------------------

    def _is_due(self, iteration: int, epoch_ends: bool, now: float) -> bool:
        if self.snapshot_every:
            return iteration % self.snapshot_every == 0
        return now >= self._snapshot_due if self.ranks.size == 1 else epoch_ends  # clocks differ, epochs do not

    def _save(self, log: LogFile) -> None:
        start = time.perf_counter()
        self.ranks.average_statistics(self.chain)
        if self.ranks.first:
            log.flush()
            state = vars(self.state)
            if self._unsaved_best:  # before the snapshot: one that is newer is met again, and is the same
                snapshot.save(self.folder / snapshot.BEST, self.best, state)
                self._unsaved_best = False
            arrays = {**self.trained.copies(), **snapshot.generator()}
            snapshot.save(self.folder / snapshot.NAME, arrays, state, self.updater.optimizer)
        self._next_snapshot(time.perf_counter() - start)

    def _next_snapshot(self, seconds: float) -> None:
        self._snapshot_due = time.perf_counter() + max(_MOMENT, _SPARE * seconds)

    def _restore(self) -> None:
        path = self.folder / snapshot.NAME
        content = self.ranks.told(path.read_bytes() if path.exists() else b"") if self.ranks.size > 1 else b""
        if not content and not (self.ranks.size == 1 and path.exists()):
            return
        data = self.state.data
        state, arrays = snapshot.load(path, content, self.updater.optimizer)
        self.state = State(**state)
        if self.ranks.first and self.state.data != data:
            raise UsageError(
                "the data are not those that the run began with", where=str(self.folder), hint="name a new folder"
            )
        try:
            self.trained.fill(arrays)
            snapshot.set_generator(arrays)
        except (KeyError, ValueError) as error:
            raise FormatError(f"is no snapshot of this run: {error}", where=str(path), hint=snapshot.HINT) from None
        best = self.folder / snapshot.BEST
        if self.ranks.first and self.state.best is not None and best.exists():
            self.best = snapshot.load(best)[1]

    def best_is_last(self) -> bool:
        """Whether the best parameters are those at the end."""
        last = self.trained.copies()
        return all(np.array_equal(values, last[key]) for key, values in self.best.items())

    def _source(self) -> Source:
        if self.train is None:
            raise ModelError("no stage of the run has begun")
        return self.train

    def _enter(self, stage: Stage) -> None:
        """Begin a stage: what it freezes, and where the trained part starts."""
        stage.freeze()
        self._params = [param for param in self.chain.params() if not is_frozen(param)]
        self.cut, self.train, self.validation = stage.prepare()
