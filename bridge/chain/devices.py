"""Devices that Chainer can train on: the CPU, and CUDA GPUs through CuPy."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from bridge.compat import cuda_parts
from bridge.errors import MissingExtraError, UsageError
from bridge.extras import pip

_LIBRARIES = ("nvrtc", "cublas", "cusolver", "cusparse", "curand")
_NO_DEVICE = "there is no CUDA device"
_OUT_OF_MEMORY = ("ALLOC_FAILED", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
_NAMES = "-1 (CPU), 0, 1, ... or @cupy:0 (a GPU), gpu (each process its own)"


def gpu_hint() -> str:
    """How to install CuPy."""
    return (
        f"on a machine with an NVIDIA GPU, {pip('cupy-cuda12x')} for a driver of CUDA 12, cupy-cuda13x in place of "
        "cupy-cuda12x for one of CUDA 13; nvidia-smi shows the driver's version"
    )


def cuda_problem() -> str:
    """The reason why no CUDA GPU can be used; empty if one can.

    ``chainer.backends.cuda.available`` is true where the libraries are installed and the driver is not. So this
    function asks the driver for the number of devices. Then it looks for the libraries: CuPy can be imported without
    them, and Chainer finds no CUDA then.
    """
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    cuda_parts.preload()
    try:
        import cupy

        count = int(cupy.cuda.runtime.getDeviceCount())
    except ImportError as error:
        return f"cupy does not import: {str(error).splitlines()[0]}"
    except RuntimeError as error:  # CUDARuntimeError, a name that does not exist without a driver
        return str(error).splitlines()[0]
    missing = missing_libraries() if count else []
    return f"libraries of CUDA are missing: {', '.join(missing)}" if missing else "" if count else _NO_DEVICE


def missing_libraries() -> list[str]:
    """Names of CUDA's libraries that CuPy does not load and a training step needs, such as ``cublas``."""
    return [name for name in _LIBRARIES if not _is_loaded(name)]


def _is_loaded(library: str) -> bool:
    try:
        module = importlib.import_module(f"cupy_backends.cuda.libs.{library}")
        if library == "nvrtc":  # looked up at its first use
            module.getVersion()
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def device_failures() -> tuple[type[Exception], ...]:
    """The exceptions that CuPy, CUDA and its compiler raise."""
    kinds: tuple[type[Exception], ...] = (RuntimeError, ImportError, OSError, MemoryError)
    compiler = sys.modules.get("cupy.cuda.compiler")
    return kinds if compiler is None else (*kinds, compiler.CompileException)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """A context that raises MemoryError also where one of CUDA's libraries has too little memory."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays
        raise MemoryError(str(error)) from None


def cuda_devices() -> int:
    """The number of CUDA devices, once :func:`cuda_problem` has found none."""
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def name_and_memory(number: int) -> tuple[str, int]:
    """The name of a CUDA device, and its memory in bytes."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(number)
    name = found["name"]
    return name.decode() if isinstance(name, bytes) else str(name), int(found["totalGlobalMem"])


def parse_device(name: Any, *, local_rank: int = 0, local_size: int = 1) -> str:
    """Chainer's name of a device.

    Args:
        name: ``-1``, ``cpu`` or ``@numpy`` for the CPU; ``0``, ``1`` or ``@cupy:0`` for a GPU, as text or number;
            ``gpu`` for the GPU with the number of this process on its machine; or a device of Chainer's own.
        local_rank: The number of this process on its machine.
        local_size: The number of processes on it.

    Returns:
        ``@numpy`` or ``@cupy:N``.

    Raises:
        UsageError: There is no such device, or several processes would share a GPU.
        MissingExtraError: It is a GPU, and no GPU can be used.
    """
    text = str(getattr(name, "name", name))
    wanted = {"-1": "@numpy", "cpu": "@numpy", "gpu": f"@cupy:{local_rank}"}.get(text)
    wanted = wanted or (f"@cupy:{text}" if text.isdecimal() else text)
    if wanted == "@numpy":
        return wanted
    number = wanted.removeprefix("@cupy:")
    if number == wanted or not number.isdecimal():
        raise UsageError(f"no device '{text}'", hint=f"devices: {_NAMES}")
    if text != "gpu" and local_size > 1:
        raise UsageError(f"{local_size} processes on one GPU", hint="--device gpu gives each its own")
    if problem := cuda_problem():
        raise MissingExtraError(f"device '{text}': {problem}", hint=gpu_hint())
    if int(number) >= (count := cuda_devices()):
        raise UsageError(f"no device '{text}': CUDA finds {count}, from 0 to {count - 1}", hint=f"devices: {_NAMES}")
    return wanted


def scope(name: str) -> AbstractContextManager[Any]:
    """A context in which arrays are made, and kernels run, on a device.

    CuPy has a current device. A run enters this scope once, around all that it computes; without it, arrays would
    go to GPU 0 whichever GPU the chain is on.

    Args:
        name: ``@numpy`` or ``@cupy:N``.
    """
    from bridge.chain.functions import chainer

    context: AbstractContextManager[Any] = chainer.using_device(chainer.get_device(name))
    return context


def free_memory() -> None:
    """Give back the memory of a GPU that CuPy keeps for later arrays."""
    if cuda_problem():
        return
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()


class Uploader:
    """Copies arrays to a GPU from pinned memory, in a stream of its own: the GPU computes meanwhile.

    Args:
        device: Chainer's name of the GPU.
    """

    def __init__(self, device: str) -> None:
        import cupy

        self._device = device
        with scope(device):
            self._stream = cupy.cuda.Stream(non_blocking=True)

    def mark(self) -> Any:
        """The work that the GPU has been given so far, for :meth:`send`."""
        import cupy

        return cupy.cuda.get_current_stream().record()

    def send(self, arrays: Mapping[str, np.ndarray], after: Any) -> dict[str, Any]:
        """The arrays on the GPU, once they are there.

        Args:
            arrays: Arrays by name.
            after: From :meth:`mark`. Memory that is free by then may still be read by this work, so the copy waits for
                it.
        """
        import cupy
        import cupyx

        made = {}
        with scope(self._device), self._stream:
            self._stream.wait_event(after)
            for name, values in arrays.items():
                pinned = cupyx.empty_pinned(values.shape, values.dtype)
                pinned[...] = values
                made[name] = cupy.empty(values.shape, values.dtype)
                made[name].set(pinned, stream=self._stream)
            self._stream.synchronize()  # the pinned memory is used again
        return made


def to_host(array: Any) -> np.ndarray:
    """An array of NumPy or CuPy as one of NumPy; one of NumPy as it is."""
    return np.asarray(array if isinstance(array, (np.ndarray, np.generic)) else array.get())


def numbers_on_host(numbers: Sequence[Any]) -> list[float]:
    """Arrays of one value each as numbers, by one copy from the device.

    Args:
        numbers: Arrays of NumPy or CuPy without axes, of any dtypes.
    """
    from bridge.chain.functions import chainer

    xp = chainer.backend.get_array_module(*numbers)
    if xp is np:
        return [float(number) for number in numbers]
    return [float(number) for number in to_host(xp.stack([number.astype(np.float64) for number in numbers]))]
