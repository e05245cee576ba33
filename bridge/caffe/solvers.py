"""Caffe's six solvers.

Source: solver.cpp, sgd_solver.cpp and its like, _caffe.cpp.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bridge.caffe.net import Net
from bridge.caffe.solver_param import SolverSettings
from bridge.caffe.state import STATE, log, set_random_seed
from bridge.caffe.updates import Updates
from bridge.errors import FormatError, MissingFileError
from bridge.files.solver_state import SolverState, read_solver_state, write_solver_state

Action = Callable[[], str]
"""Asked after each update: ``none``, ``snapshot`` or ``stop``."""


class Solver:
    """What all solvers share. Paths in the solver.prototxt are relative to the working directory, as in Caffe.

    Args:
        file: The solver.prototxt, or its settings.

    Attributes:
        net: The net in training.
        test_nets: The nets to test with.
        iter: How many updates were made.
        action: Asked after each update and each batch of a test what to do: ``none``, ``snapshot`` or ``stop``.
        report: Called with a record of each step (``iteration``, ``loss``, ``lr``) and of each test (``iteration``,
            ``test``, and ``outputs``, the values by the blob's name).

    Raises:
        MissingFileError: A file does not exist.
        FormatError: The solver.prototxt is damaged or contradicts itself.
        ModelError: A net does not fit together.
    """

    kind: ClassVar[str] = ""
    """The ``type`` in a solver.prototxt."""

    def __init__(self, file: Any) -> None:
        settings = file if isinstance(file, SolverSettings) else SolverSettings.read(file)
        self.settings, self.where = settings, settings.where
        if self.kind:
            settings.use_type(self.kind)
        settings.check_snapshots()
        if settings.param.random_seed >= 0:
            set_random_seed(settings.param.random_seed + STATE.rank)
        self.net: Net = settings.train_net()
        self.test_nets: list[Net] = settings.test_nets()
        self.iter = 0
        self.action: Action = lambda: "none"
        self.report: Callable[[dict[str, Any]], None] = lambda record: None
        self._callbacks: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        self._updates = Updates(self.net, settings.recipe)
        self._stopped = False
        self._losses: list[float] = []
        self._smoothed = 0.0
        self._clock, self._last = time.perf_counter(), 0

    @property
    def param(self) -> Any:
        """The ``SolverParameter``. Changes of ``base_lr``, ``max_iter``, ``display`` and so on count at once."""
        return self.settings.param

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self.settings.recipe.rate(self.iter)

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any] | None = None) -> None:
        """Have functions called in each step: before its forward pass, and before its update.

        A single one is called before the update, as pycaffe does with an ``NCCL``.
        """
        if on_gradients_ready is None:
            on_start, on_gradients_ready = (lambda: None), on_start
        self._callbacks.append((on_start, on_gradients_ready))

    def share_weights(self, net: Net) -> None:
        """Let another net have this solver's parameters from now on."""
        net.share_with(self.net)

    # -- training ----------------------------------------------------------------------------------

    def step(self, iterations: int) -> None:
        """Make so many updates, with the tests and snapshots that come between. Source: ``Solver::Step``."""
        start, stop = self.iter, self.iter + iterations
        self._losses, self._smoothed = [], 0.0
        self._clock = time.perf_counter()
        while self.iter < stop:
            self.net.clear_param_diffs()
            due = self.param.test_interval and self.iter % self.param.test_interval == 0
            if due and (self.iter > 0 or self.param.test_initialization):
                self._test_all()
                if self._stopped:
                    break
            self._one_step(start)
            request = self.action()
            if (self.param.snapshot and self.iter % self.param.snapshot == 0) or request == "snapshot":
                self.snapshot()
            if request == "stop":
                self._stopped = True
                break

    def _one_step(self, start: int) -> None:
        for on_start, _ in self._callbacks:
            on_start()
        loss = sum(self._forward_backward() for _ in range(self.param.iter_size)) / self.param.iter_size
        self._smooth(loss, start)
        self.report({"iteration": self.iter, "loss": loss, "lr": self.lr})
        if self.param.display and self.iter % self.param.display == 0:
            self._display()
        for _, on_gradients_ready in self._callbacks:
            on_gradients_ready()
        self.apply_update()

    def _forward_backward(self) -> float:
        last = len(self.net.nodes) - 1
        loss = self.net._forward(0, last)
        self.net._backward(last, 0)
        return loss

    def apply_update(self) -> None:
        """Update the parameters from their diffs; the diffs are the updates then. Source: ``ApplyUpdate``."""
        rate = self.lr
        if self.param.display and self.iter % self.param.display == 0:
            log(f"Iteration {self.iter}, lr = {rate:g}", "sgd_solver.cpp")
        self._updates.apply(rate, self.iter)
        self.iter += 1

    def solve(self, resume_file: Any = None) -> None:
        """Train to ``max_iter``. Source: ``Solver::Solve``.

        Args:
            resume_file: A ``.solverstate`` to go on from.
        """
        log(f"Solving {self.net.name}", "solver.cpp")
        log(f"Learning Rate Policy: {self.param.lr_policy}", "solver.cpp")
        self._stopped = False
        if resume_file is not None:
            log(f"Restoring previous solver status from {os.fsdecode(resume_file)}", "solver.cpp")
            self.restore(resume_file)
        start = self.iter
        self.step(self.param.max_iter - self.iter)
        if self.param.snapshot_after_train and not (self.param.snapshot and self.iter % self.param.snapshot == 0):
            self.snapshot()
        if self._stopped:
            log("Optimization stopped early.", "solver.cpp")
            return
        if self.param.display and self.iter % self.param.display == 0:
            self._smooth(self.net._forward(0, len(self.net.nodes) - 1), start)
            log(f"Iteration {self.iter}, loss = {self._smoothed:g}", "solver.cpp")
        if self.param.test_interval and self.iter % self.param.test_interval == 0:
            self._test_all()
        log("Optimization Done.", "solver.cpp")

    def _smooth(self, loss: float, start: int) -> None:
        """Source: ``Solver::UpdateSmoothedLoss``."""
        average = self.param.average_loss
        if len(self._losses) < average:
            self._losses.append(loss)
            size = len(self._losses)
            self._smoothed = (self._smoothed * (size - 1) + loss) / size
        else:
            place = (self.iter - start) % average
            self._smoothed += (loss - self._losses[place]) / average
            self._losses[place] = loss

    def _display(self) -> None:
        seconds = time.perf_counter() - self._clock
        speed = (self.iter - self._last) / (seconds or 1)
        log(
            f"Iteration {self.iter} ({speed:g} iter/s, {seconds:g}s/{self.param.display} iters), "
            f"loss = {self._smoothed:g}",
            "solver.cpp",
        )
        self._clock, self._last = time.perf_counter(), self.iter
        for number, (name, value, weight) in enumerate(scores(self.net)):
            log(f"    Train net output #{number}: {name} = {value:g}{_share(value, weight)}", "solver.cpp")

    # -- testing -----------------------------------------------------------------------------------

    def _test_all(self) -> None:
        for number in range(len(self.test_nets)):
            if not self._stopped:
                self._test(number)

    def _test(self, number: int) -> None:
        """Source: ``Solver::Test``."""
        log(f"Iteration {self.iter}, Testing net (#{number})", "solver.cpp")
        net = self.test_nets[number]
        net.share_with(self.net)
        count = self.param.test_iter[number]
        total, sums = 0.0, np.zeros(0, np.float32)
        for batch in range(count):
            while (request := self.action()) != "none":
                if request == "snapshot":
                    self.snapshot()
                else:
                    self._stopped = True
                    log("Test interrupted.", "solver.cpp")
                    return
            total += net._forward(0, len(net.nodes) - 1)
            values = np.array([value for _, value, _ in scores(net)], np.float32)
            sums = values if batch == 0 else sums + values
        if self.param.test_compute_loss:
            log(f"Test loss: {total / count:g}", "solver.cpp")
        means = [float(value) for value in sums / np.float32(count)]
        self.report({"iteration": self.iter, "test": number, "outputs": by_name(net, means)})
        for place, ((name, _, weight), value) in enumerate(zip(scores(net), means, strict=True)):
            log(f"    Test net output #{place}: {name} = {value:g}{_share(value, weight)}", "solver.cpp")

    # -- snapshots ---------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write ``PREFIX_iter_N.caffemodel`` and ``.solverstate``, or HDF5 as ``snapshot_format`` says.

        Raises:
            OutputError: They cannot be written.
        """
        hdf5 = self.param.snapshot_format == self.param.HDF5
        model, state = (self._snapshot_name(end + (".h5" if hdf5 else "")) for end in (".caffemodel", ".solverstate"))
        log(f"Snapshotting to {'HDF5' if hdf5 else 'binary proto'} file {model}", "solver.cpp")
        (self.net.save_hdf5 if hdf5 else self.net.save)(model)
        log(f"Snapshotting solver state to {'HDF5' if hdf5 else 'binary proto'} file {state}", "sgd_solver.cpp")
        write_solver_state(state, self._state(model), hdf5=hdf5)

    def _snapshot_name(self, end: str) -> str:
        return f"{self.param.snapshot_prefix}_iter_{self.iter}{end}"

    def _state(self, model: str) -> SolverState:
        step = self.settings.recipe.current_step(self.iter)
        return SolverState(self.iter, model, step, tuple(self._updates.history()))

    def restore(self, file: Any) -> None:
        """Go on from a ``.solverstate`` of Caffe's or of :meth:`snapshot`. Source: ``Solver::Restore``.

        Args:
            file: The file. The parameters are in the file that it names, which is looked for beside it too.

        Raises:
            MissingFileError: It, or the file with the parameters, does not exist.
            FormatError: It is no solver state.
            ModelError: It is another solver's, or another net's.
        """
        path = Path(os.fsdecode(file))
        if not path.is_file():
            raise MissingFileError("does not exist", where=str(path))
        state = read_solver_state(path)
        if state.learned_net:
            named = Path(state.learned_net)
            found = [name for name in (named, path.parent / named.name) if name.is_file()]
            if not found:
                raise MissingFileError(f"names '{state.learned_net}', which does not exist", where=str(path))
            self.net.copy_from(found[0])
        self._updates.restore(state.history, str(path))
        self.iter = state.iteration


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    kind = "SGD"


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient."""

    kind = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    kind = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    kind = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    kind = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    kind = "Adam"


_SOLVERS = (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)


def get_solver(file: Any) -> Solver:
    """The solver of the ``type`` that a solver.prototxt says.

    Args:
        file: The solver.prototxt, or its settings.
    """
    settings = file if isinstance(file, SolverSettings) else SolverSettings.read(file)
    for solver in _SOLVERS:
        if solver.kind == settings.param.type:
            return solver(settings)
    raise FormatError(f"unknown solver type '{settings.param.type}'", where=settings.where)


def scores(net: Net) -> Iterator[tuple[str, float, float]]:
    """Each value of a net's outputs: the blob's name, the value, the blob's loss weight."""
    names, weights = net._blob_names, net._blob_loss_weights
    for number in net._outputs:
        for value in net._blobs[number].peek().reshape(-1):
            yield names[number], float(value), weights[number]


def by_name(net: Net, values: list[float]) -> dict[str, float | list[float]]:
    """The values of :func:`scores`, or others in their place, by blob; a list where a blob has several."""
    found: dict[str, list[float]] = {}
    for (name, _, _), value in zip(scores(net), values, strict=True):
        found.setdefault(name, []).append(value)
    return {name: several[0] if len(several) == 1 else several for name, several in found.items()}


def _share(value: float, weight: float) -> str:
    """What an output adds to the loss, in words."""
    return f" (* {weight:g} = {weight * value:g} loss)" if weight else ""
