"""What Caffe keeps for the whole process: the mode, the device, the random numbers, the log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

from bridge.errors import MissingExtraError, UsageError
from bridge.sources.randoms import Mersenne

_CPU = "or use caffe.set_mode_cpu(), or 'python -m bridge.caffe --cpu SCRIPT.py', which runs the script as it is"


class _State:
    def __init__(self) -> None:
        self.gpu = False
        self.cpu_only = False
        self.device = 0
        self.rng = np.random.default_rng()
        self.mersenne = Mersenne()
        self.resolve: Callable[[str], Path] = Path  # paths in definitions: relative to the working directory
        self.solvers, self.rank, self.multiprocess = 1, 0, False
        self.level = 0
        self.stream: TextIO | None = None


STATE = _State()


def set_mode_cpu() -> None:
    """Compute on the CPU, as is the default."""
    STATE.gpu = False


def set_mode_gpu() -> None:
    """Compute on a CUDA device, through CuPy.

    Raises:
        MissingExtraError: There is no CuPy, or it finds no device.
    """
    if not _on_cpu_anyway("set_mode_gpu()"):
        _check_gpu()
        STATE.gpu = True


def set_device(device: int) -> None:
    """Choose the CUDA device for GPU mode.

    Raises:
        MissingExtraError: There is no CuPy, or it finds no device.
        UsageError: There is no device of that number.
    """
    if _on_cpu_anyway(f"set_device({device})"):
        return
    count = _check_gpu()
    if not 0 <= device < count:
        raise UsageError(f"no CUDA device {device}", hint=f"devices: 0 to {count - 1}")
    STATE.device = device


def stay_on_cpu() -> None:
    """From now on compute on the CPU, whatever a script says; its choice of a device has no effect."""
    STATE.gpu, STATE.cpu_only = False, True


def _on_cpu_anyway(call: str) -> bool:
    """Whether :func:`stay_on_cpu` was called; says so where a script asks for a GPU."""
    if STATE.cpu_only:
        print(f"bridge.caffe: {call} has no effect, as --cpu was given", file=sys.stderr)
    return STATE.cpu_only


def _check_gpu() -> int:
    """The number of CUDA devices; a MissingExtraError if there is none."""
    from bridge.chain.devices import cuda_devices, cuda_problem, gpu_hint

    if problem := cuda_problem():
        raise MissingExtraError(f"cannot use GPU: {problem}", hint=f"{gpu_hint()}; {_CPU}")
    return cuda_devices()


def set_random_seed(seed: int) -> None:
    """Start all random numbers anew. Those of data layers are Caffe's own, those of fillers and dropout are not."""
    STATE.mersenne.seed(seed)
    STATE.rng = np.random.default_rng(seed)


def draw_seed() -> int:
    """A seed from the process's random numbers."""
    return int(STATE.rng.integers(1 << 62))


def solver_count() -> int:
    """How many solvers train together."""
    return STATE.solvers


def set_solver_count(count: int) -> None:
    """Say how many solvers train together."""
    STATE.solvers = count


def solver_rank() -> int:
    """Which of them this process is."""
    return STATE.rank


def set_solver_rank(rank: int) -> None:
    """Say which of them this process is."""
    STATE.rank = rank


def set_multiprocess(multiprocess: bool) -> None:
    """Say whether solvers in other processes train along."""
    STATE.multiprocess = multiprocess


def has_nccl() -> bool:
    """Whether solvers can exchange gradients through NCCL: no."""
    return False


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Show what :func:`log` gets.

    Args:
        level: 0 for all messages, 1 and more for none of this function's.
        stderr: Write to stderr; else nothing is shown.
    """
    STATE.level, STATE.stream = level, sys.stderr if stderr else None


def init_glog(*_: object) -> None:
    """As :func:`init_log`; a name that forks have. The file of the log that they take is not written."""
    init_log()


def log(text: str, place: str = "bridge.caffe") -> None:
    """Write a line as glog does, once :func:`init_log` was called.

    Args:
        text: The line.
        place: The source file that is named in front of it; tools expect a line number behind it.
    """
    if STATE.stream is not None and STATE.level <= 0:
        now = time.time()
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now))
        print(f"I{stamp}.{int(now % 1 * 1e6):06d} {os.getpid():>5} {place}:0] {text}", file=STATE.stream, flush=True)


class Timer:
    """Measures time: ``start()``, ``stop()``, then ``ms``."""

    def __init__(self) -> None:
        self._start = 0.0
        self._ms = 0.0

    def start(self) -> None:
        """Begin."""
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End."""
        self._ms = (time.perf_counter() - self._start) * 1e3

    @property
    def ms(self) -> float:
        """Milliseconds from the last start to the stop after it."""
        return self._ms


class NCCL:
    """Caffe's link between solvers of several processes. Here a solver trains alone, so there is nothing to exchange.

    Args:
        solver: The solver.
        uid: What :meth:`new_uid` gave.

    Raises:
        MissingExtraError: Several solvers are to train together.
    """

    def __init__(self, solver: object, uid: object) -> None:
        if STATE.solvers > 1:
            raise MissingExtraError(
                f"NCCL is not available for {STATE.solvers} solvers: has_nccl() is False", hint="train with one device"
            )

    @staticmethod
    def new_uid() -> bytes:
        """A name for the solvers that train together."""
        return os.urandom(16)

    def bcast(self) -> None:
        """Give all solvers the parameters of the first: nothing to do."""

    def __call__(self, *_: object) -> None:
        """Sum up gradients: nothing to do."""
