"""Devices that Chainer can train on: the CPU, and CUDA GPUs through CuPy."""

from __future__ import annotations

import importlib.util

from bridge.errors import MissingExtraError, UsageError

GPU_HINT = "pip install 'weight-bridge[cupy]' on a machine with an NVIDIA GPU"


def cuda_problem() -> str:
    """The reason why no CUDA GPU can be used; empty if one can.

    ``chainer.backends.cuda.available`` is true where the libraries are installed and the driver is not. So this
    function asks the driver for the number of devices.
    """
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    try:
        import cupy

        count = int(cupy.cuda.runtime.getDeviceCount())
    except ImportError as error:
        return f"cupy does not import: {str(error).splitlines()[0]}"
    except RuntimeError as error:  # CUDARuntimeError, a name that does not exist without a driver
        return str(error).splitlines()[0]
    return "" if count else "there is no CUDA device"


def cuda_devices() -> int:
    """The number of CUDA devices, once :func:`cuda_problem` has found none."""
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def device_facts(number: int) -> tuple[str, int]:
    """The name of a CUDA device, and its memory in bytes."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(number)
    name = found["name"]
    return name.decode() if isinstance(name, bytes) else str(name), int(found["totalGlobalMem"])


def parse_device(text: str) -> str:
    """Chainer's name of a device.

    Args:
        text: ``-1``, ``cpu`` or ``@numpy`` for the CPU; ``0``, ``1`` or ``@cupy:0`` for a GPU.

    Returns:
        ``@numpy`` or ``@cupy:N``.

    Raises:
        UsageError: The text is no such name.
        MissingExtraError: It names a GPU, and no GPU can be used.
    """
    name = {"-1": "@numpy", "cpu": "@numpy"}.get(text, f"@cupy:{text}" if text.isdecimal() else text)
    if name == "@numpy":
        return name
    if not name.startswith("@cupy:") or not name.removeprefix("@cupy:").isdecimal():
        raise UsageError(f"no device '{text}'", hint="devices: -1 (CPU), 0, 1, ... or @cupy:0 (GPU)")
    if problem := cuda_problem():
        raise MissingExtraError(f"device '{text}': {problem}", hint=GPU_HINT)
    return name
