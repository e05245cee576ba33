"""Kernels in CUDA's C, compiled as C++ and run on the processor, one thread after the other."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = """
#include <cmath>
#define __global__
struct Place { unsigned x; };
static Place blockIdx, threadIdx, blockDim, gridDim;
"""
"""What stands for CUDA's index variables."""
_CTYPES: dict[Any, Any] = {np.dtype(np.int32): ctypes.c_int, np.dtype(np.float32): ctypes.c_float}
_BLOCKS, _THREADS = 3, 5
"""Blocks and threads that a call has, whatever was asked for; few, so that a test sees several values per thread."""


def compiler() -> str | None:
    """The path of the system's C++ compiler; ``None`` where there is none."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


class RawKernel:
    """``cupy.RawKernel``, on the processor.

    Args:
        source: CUDA's C, with the function ``extern "C" __global__ void name(...)``.
        name: The function.
    """

    def __init__(self, source: str, name: str) -> None:
        self._function = _library(source, name)[f"run_{name}"]

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        """Run the function in all threads.

        Raises:
            TypeError: An argument is neither a C-contiguous array of the device nor an int32 or float32 number.
        """
        self._function(*map(_argument, args))


def _argument(value: Any) -> Any:
    if isinstance(value, np.generic) and value.dtype in _CTYPES:
        return _CTYPES[value.dtype](value.item())
    held = getattr(value, "_values", None)
    if not isinstance(held, np.ndarray) or held.dtype not in _CTYPES or not held.flags.c_contiguous:
        raise TypeError(f"a kernel takes arrays of the device and int32 or float32 numbers, not {value!r}")
    return ctypes.c_void_p(held.ctypes.data)


@functools.cache
def _library(source: str, name: str) -> ctypes.CDLL:
    """The compiled source, with ``run_name``, which has the function's parameters."""
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler to run kernels with")
    signature = source[source.index(f"{name}(") + len(name) + 1 :]
    parameters = signature[: signature.index(")")]
    names = ", ".join(part.split()[-1].lstrip("*") for part in parameters.split(","))
    body = f"""
extern "C" void run_{name}({parameters}) {{
    gridDim.x = {_BLOCKS}; blockDim.x = {_THREADS};
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {name}({names});
}}
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cpp")
        path.write_text(_HEADER + source + body, encoding="utf-8")
        built = [command, "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", f"{folder}/kernel.so", str(path)]
        subprocess.run(built, check=True, capture_output=True)
        return ctypes.CDLL(f"{folder}/kernel.so")
