"""The loop of a run: steps, validation, log and snapshots."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.chain import devices
from bridge.chain.build import NetChain
from bridge.chain.devices import numbers_on_host
from bridge.chain.freezing import is_frozen
from bridge.chain.functions import chainer
from bridge.chain.functions.helper_rows import part_of_batch
from bridge.errors import ModelError, UsageError
from bridge.finetuning import blas
from bridge.finetuning.batches import Batch
from bridge.finetuning.evaluation import Evaluation, evaluate, forward
from bridge.finetuning.events import event_files
from bridge.finetuning.interrupts import Interrupts
from bridge.finetuning.listener import Listener
from bridge.finetuning.logfile import LogFile, read_log
from bridge.finetuning.optimizers import Updater
from bridge.finetuning.outcome import Outcome
from bridge.finetuning.plan import Plan
from bridge.finetuning.prefetch import Ahead
from bridge.finetuning.saving import Saver
from bridge.finetuning.snapshot import State, Trained
from bridge.finetuning.sources import Source
from bridge.finetuning.stages import Inputs, Stage, freeze_layers, open_stage

Record = dict[str, Any]
"""What the log says of a step: iteration, epoch, loss, lr, and perhaps accuracy and validation results."""


@dataclass
class Position:
    """Where a loop is.

    Attributes:
        state: What a snapshot holds of it.
        best: The trained arrays of the best epoch.
        inputs: The images of the current stage; ``None`` before the first.
        params: The parameters that are trained in it.
        ahead: Reads the next batch of it; ``None`` on the CPU, where reading would take turns with computing.
    """

    state: State
    best: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: Inputs | None = None
    params: list[Any] = field(default_factory=list)
    ahead: Ahead | None = None


@dataclass(frozen=True)
class Loop:
    """Runs a plan.

    Attributes:
        plan: The plan.
        chain: What is trained.
        updater: The optimizer, and each parameter's rate.
        trained: The arrays that training changes.
        saver: Saves snapshots.
        listener: Whom it tells what it does.
        at: Where the loop is; all that changes while it runs.
    """

    plan: Plan
    chain: NetChain
    updater: Updater
    trained: Trained
    saver: Saver
    listener: Listener
    at: Position

    @classmethod
    def of(cls, plan: Plan, chain: NetChain, listener: Listener) -> Loop:
        """The loop of a plan, before its first step.

        Raises:
            UsageError: The recipe names no optimizer.
        """
        config = plan.config
        updater = Updater(plan.recipe, chain, plan.factors, half=config.half, replay=plan.train.fixed)
        freeze_layers(plan.net, chain, plan.stages[-1].frozen, plan.still)
        trained = Trained(chain)
        saver = Saver(config.folder, trained, updater.optimizer, plan.ranks, config.snapshot_every)
        state = plan.fresh_state()
        state.frozen = trained.digest_of_others()
        return cls(plan, chain, updater, trained, saver, listener, Position(state))

    @property
    def inputs(self) -> Inputs:
        """The images of the current stage."""
        if self.at.inputs is None:
            raise ModelError("no stage of the run has begun")
        return self.at.inputs

    def run(self) -> Outcome:
        """Train to the end.

        Returns:
            What came out of it, with the model's arrays in the chain.

        Raises:
            ModelError: The loss is not a finite number.
            UsageError: There is not enough memory.
            OutputError: Log or snapshot cannot be written.
            KeyboardInterrupt: A signal asked the run to stop; a snapshot holds all steps that were done.
        """
        config = self.plan.config
        with (
            blas.threads(config.threads),
            devices.scope(config.device),
            self.own_generator(),
            self._memory_errors_named(),
        ):
            if self.plan.config.resume and (found := self.saver.restore()):
                self._check_frozen(found[0])
                self.at.state, self.at.best = found
                if self.at.state.loss_scale:
                    self.updater.set_loss_scale(self.at.state.loss_scale, self.at.state.calm)
            self.enter([stage for stage in self.plan.stages if stage.start <= self.at.state.iteration][-1])
            try:
                self._train()
            finally:
                self._close()
            return self._outcome()

    def _check_frozen(self, state: State) -> None:
        """Check that a run is resumed from the frozen layers that it began with."""
        if state.frozen and state.frozen != self.at.state.frozen and self.plan.ranks.first:
            raise UsageError(
                "the model's frozen layers are not those that the run began with",
                where=str(self.plan.config.folder),
                hint=f"give {', '.join(self.plan.config.files)} as it was, or name a new folder",
            )

    def _train(self) -> None:
        state, folder = self.at.state, self.plan.config.folder
        with (
            chainer.using_config("type_check", False),  # the shapes were inferred for the plan
            Interrupts(self.plan.ranks.size == 1, self._tell_wait) as interrupts,
            LogFile(folder, state.iteration, self.plan.ranks.first) as log,
            event_files(folder, state.iteration, self.plan.ranks.first) as log.also,
        ):
            try:
                while state.iteration < self.plan.iterations and not state.stopped:
                    if self._iterate(log, interrupts):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if not interrupts.cut:
                    with interrupts.held():
                        self._save(log)
                    raise KeyboardInterrupt("all steps are kept; --resume goes on") from None
                raise KeyboardInterrupt("the last snapshot is kept; --resume goes on from it") from None
            with interrupts.held():
                self._save(log)

    def _tell_wait(self) -> None:
        self.listener.note("stops after this step; again stops at once, without what came after the last snapshot")

    def enter(self, stage: Stage) -> None:
        """Begin a stage."""
        self.at.inputs = open_stage(self.plan, self.chain, stage, self.listener)
        self.at.params = [param for param in self.chain.params() if not is_frozen(param)]
        self._close()
        if self.chain.xp is not np:
            self.at.ahead = Ahead(self.inputs.train, devices.Uploader(self.plan.config.device))

    def _close(self) -> None:
        if self.at.ahead is not None:
            self.at.ahead.close()

    def _iterate(self, log: LogFile, interrupts: Interrupts) -> bool:
        """One step and what follows it; returns whether a rank was asked to stop."""
        state, batches = self.at.state, self.plan.batches
        for stage in self.plan.stages[1:]:
            if stage.start == state.iteration:
                self.enter(stage)
        start = time.perf_counter()
        moving = self.trained.moving()
        try:
            record, stop = self.gradients(state.iteration, interrupts.asked)
        except KeyboardInterrupt:  # nothing has changed but running statistics
            self.trained.put_back(moving)
            raise
        with interrupts.held():
            self.update(record)
            epoch_ends = batches.epoch_ends(state.iteration, self.plan.recipe.iter_size)
            state.iteration += 1
            if epoch_ends or state.iteration == self.plan.iterations:
                record.update(self._validate(record["epoch"]))
            now = time.perf_counter()
            log.write(record, now)
            if self.saver.is_due(state.iteration, epoch_ends, now):
                self._save(log)
        self._tell(record, now - start, epoch_ends or state.iteration == self.plan.iterations)
        return stop or (interrupts.asked and self.plan.ranks.size == 1)  # several stop together, after the next step

    def _tell(self, record: Record, seconds: float, epoch_ends: bool) -> None:
        plan = self.plan
        more = {"images": plan.images_per_step, "iterations": plan.iterations, "epochs": plan.epochs}
        best = "validation_loss" in record and self.at.state.best_epoch == record["epoch"]
        self.listener.step({**record, **more, "seconds": seconds, "epoch_ends": epoch_ends, "best": best})

    def gradients(self, iteration: int, interrupted: bool = False) -> tuple[Record, bool]:
        """The gradients of one update: the step's record, and whether a rank was asked to stop."""
        recipe, ranks = self.plan.recipe, self.plan.ranks
        rate = recipe.rate(iteration)
        self.seed(iteration)
        for param in self.at.params:
            param.cleargrad()
        first = iteration * recipe.iter_size
        *batches, after = [self.plan.batches[first + part] for part in range(recipe.iter_size + 1)]
        pairs = zip(batches, [*batches[1:], after], strict=True)
        found = numbers_on_host([number for batch, following in pairs for number in self._gradients(batch, following)])
        weights = [ranks.part(len(batch.indices)).weight for batch in batches]
        loss = sum(value * weight if weight != 1 else value for value, weight in zip(found[::2], weights, strict=True))
        right = sum(value for value, weight in zip(found[1::2], weights, strict=True) if weight)
        loss, right, stop = ranks.summed(loss, right, interrupted)
        loss /= recipe.iter_size * ranks.size
        record = {"iteration": iteration, "epoch": batches[-1].epoch, "loss": loss, "lr": rate}
        if self.updater.loss_scale is not None:
            record["loss_scale"] = self.updater.loss_scale
        if self.plan.objective.scores is not None:
            record["accuracy"] = right / max(1, self._answers(batches))
        return record, bool(stop)

    def update(self, record: Record) -> None:
        """Change the parameters by the gradients of :meth:`gradients`, whose record this is.

        Raises:
            ModelError: The loss is not a finite number.
        """
        state = self.at.state
        self._check_finite(record["loss"], state.iteration)
        self.plan.ranks.sum_gradients(self.chain)
        self.updater.update(record["lr"])
        state.loss_scale, state.calm = self.updater.loss_scale or 0.0, self.updater.calm

    def _answers(self, batches: list[Batch]) -> int:
        """How many labels the images of some batches have, in all ranks."""
        data = self.plan.train
        each = int(np.prod(data.y.shape[1:]))  # of an image, or of a fixed batch
        return each * sum(len(batch.indices) for batch in batches)

    def _gradients(self, batch: Batch, following: Batch | None = None) -> tuple[Any, Any]:
        """Add the gradients of this rank's part of a batch; its mean loss, and how many images it has right.

        Both numbers are arrays on the device: reading one would wait for all that the device still computes. Meanwhile
        the batch ``following`` is read.
        """
        objective, ranks, total = self.plan.objective, self.plan.ranks, len(batch.indices)
        rows, weight = ranks.part(total)
        with part_of_batch(rows, total):
            source = self.at.ahead or self.inputs.train
            values, label = forward(self.chain, objective, source, batch.indices[rows], batch.epoch)
            if self.at.ahead is not None and following is not None:
                own = ranks.part(len(following.indices)).rows
                self.at.ahead.expect(Batch(following.indices[own], following.epoch))
            value = objective(values)
            predicted = objective.predicted(values)
            del values  # the graph keeps what the backward pass needs
            share = weight / ranks.size  # an image's gradient is the one that it has in the whole batch
            (value if share == 1 else value * share).backward(loss_scale=self.updater.loss_scale)
        return value.array, value.array * 0 if predicted is None else (predicted == label).sum()

    def seed(self, iteration: int) -> None:
        """Seed the generator that dropout draws from, by the run's seed and the step.

        Every step has a seed of its own, so a step's draws do not depend on what else draws from the generator.
        """
        if self.plan.random:
            mixed = (self.plan.recipe.seed * 1_000_003 + iteration * 9_176) % 2**32
            self.chain.xp.random.seed(mixed)

    def _check_finite(self, loss: float, iteration: int) -> None:
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} in iteration {iteration}",
                where=str(self.plan.config.folder),
                hint="check that images are scaled as the net knows them (--scale, --mean), lower the learning rate, "
                "or limit the gradients; the last snapshot is kept",
            )

    def _validate(self, epoch: int) -> dict[str, float]:
        """Evaluate the validation data at the end of an epoch, and keep the best epoch's arrays."""
        self.plan.ranks.average_statistics(self.chain)
        if self.inputs.validation is None:
            return {}
        state, found = self.at.state, self.evaluate(self.inputs.validation)
        if state.is_better(found.loss, found.accuracy):
            state.best, state.best_epoch, state.best_accuracy = found.loss, epoch, found.accuracy
            self.at.best = self.trained.copies()
        elif self.plan.config.patience and epoch - state.best_epoch >= self.plan.config.patience:
            state.stopped = True
        record = {"validation_loss": found.loss}
        if found.accuracy is not None:
            record["validation_accuracy"] = found.accuracy
        return record

    def evaluate(self, source: Source) -> Evaluation:
        """Evaluate the chain as it is now on a split."""
        return evaluate(self.chain, self.plan.objective, source, self.plan.batches.size, self.plan.ranks)

    def _save(self, log: LogFile) -> None:
        log.flush()  # before the snapshot: a log that is longer is cut when the run resumes
        self.saver.save(self.at.state, self.at.best)

    def _outcome(self) -> Outcome:
        """The model by the settings, the best epoch's or the last one's, and its evaluation."""
        plan, state = self.plan, self.at.state
        best = self.at.best
        if not plan.config.last and (best := plan.ranks.broadcast(best)):
            self.trained.fill(best)
        arrays = self.trained.copies()
        self._check_arrays(arrays)
        validation = self.inputs.validation
        same = all(np.array_equal(values, arrays[key]) for key, values in best.items())
        return Outcome(
            iterations=state.iteration,
            stopped=state.stopped,
            history=tuple(read_log(plan.config.folder)) if plan.ranks.first else (),
            best_epoch=state.best_epoch,
            best_loss=state.best,
            evaluation=self.evaluate(validation) if validation is not None else None,
            arrays=arrays,
            best={} if same else best,
        )

    def _check_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        for path, values in arrays.items():
            odd = values.size - int(np.isfinite(values).sum())
            if odd:
                raise ModelError(
                    f"no model is written: {odd:,} of {values.size:,} values of '{path.removeprefix('chain/')}' are no "
                    "finite numbers",
                    where=str(self.plan.config.folder),
                    hint="lower the learning rate, or limit the gradients (--clip-gradients); --find-lr helps",
                )

    def own_generator(self) -> contextlib.AbstractContextManager[None]:
        """Leave NumPy's global generator as it was, while the context is entered."""
        return _own_generator(self.chain.xp)

    @contextlib.contextmanager
    def _memory_errors_named(self) -> Iterator[None]:
        try:
            with devices.memory_errors():
                yield
        except MemoryError as error:
            traceback.clear_frames(error.__traceback__)  # they hold the arrays of the step
            raise UsageError(
                f"not enough memory in iteration {self.at.state.iteration}: {str(error) or 'no more is available'}",
                where=str(self.plan.config.folder),
                hint=f"the last snapshot is kept; a new run may take {self._remedy()}",
            ) from None

    def _remedy(self) -> str:
        """The options with which the memory suffices, found by trying the forward and the backward pass."""
        size, ranks = self.plan.batches.size, self.plan.ranks.size
        fitting = size // 2 if self.at.inputs is not None and not self.plan.train.fixed else 0
        while fitting and not self._fits(fitting):
            fitting //= 2
        if fitting < ranks:
            return "a smaller --batch-size"
        given = fitting // ranks if self.plan.config.scale_lr else fitting
        parts, rest = divmod(size * self.plan.recipe.iter_size, fitting)
        same = "" if rest else f" --iter-size {parts}, with as many images in a step as before"
        return f"--batch-size {given}{same}"

    def _fits(self, size: int) -> bool:
        """Whether the memory suffices for a batch of this size."""
        devices.free_memory()
        try:
            with devices.memory_errors():
                self._gradients(Batch(np.arange(size) % len(self.plan.train), 0))
        except MemoryError:
            return False
        return True


@contextlib.contextmanager
def _own_generator(xp: Any) -> Iterator[None]:
    """Leave NumPy's global generator, which Chainer draws from, as it was."""
    before = np.random.get_state() if xp is np else None
    try:
        yield
    finally:
        if before is not None:
            np.random.set_state(before)
