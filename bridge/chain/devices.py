"""Devices that Chainer can train on: the CPU, and CUDA GPUs through CuPy."""

from __future__ import annotations

import importlib.util

from bridge.errors import MissingExtraError, UsageError

HINT = "pip install 'weight-bridge[cupy]' on a machine with an NVIDIA GPU"


def cuda_problem() -> str:
    """Why no CUDA GPU can be used here; empty if one can.

    ``chainer.backends.cuda.available`` is true with libraries and no driver, so the
    driver itself is asked for its devices.
    """
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    try:
        import cupy

        count = int(cupy.cuda.runtime.getDeviceCount())
    except ImportError as error:
        return f"cupy does not import: {str(error).splitlines()[0]}"
    except RuntimeError as error:  # CUDARuntimeError, whose name is not there without a driver
        return str(error).splitlines()[0]
    return "" if count else "there is no CUDA device"


def cuda_devices() -> int:
    """The number of CUDA devices, once :func:`cuda_problem` has found none."""
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def parse_device(text: str) -> str:
    """Chainer's name of a device from ``-1``, ``0``, ``@numpy`` or ``@cupy:0``.

    Raises:
        UsageError: It is none of these.
        MissingExtraError: It is a GPU, and none can be used.
    """
    name = {"-1": "@numpy", "cpu": "@numpy"}.get(text, f"@cupy:{text}" if text.isdecimal() else text)
    if name == "@numpy":
        return name
    if not name.startswith("@cupy:") or not name.removeprefix("@cupy:").isdecimal():
        raise UsageError(f"no device '{text}'", hint="devices: -1 (CPU), 0, 1, ... or @cupy:0 (GPU)")
    if problem := cuda_problem():
        raise MissingExtraError(f"device '{text}': {problem}", hint=HINT)
    return name
