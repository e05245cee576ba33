"""Helper: kernels in CUDA's C, for the functions that several passes over the arrays would make slow on a GPU.

A kernel is a C function over float32 and int32 arrays. It writes every value that it owns by reading what it needs,
so it takes no atomic additions, and its results do not depend on the order in which threads run. Values of other
dtypes take the way of Chainer's functions. CuPy compiles a kernel at its first use; :class:`Kernel` needs no GPU,
so that a test can compile all of them, and run their source on a processor.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bridge.chain.functions import chainer

PRELUDE = """
#define EACH(i, n) \\
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \\
         i += (long long)blockDim.x * gridDim.x)
#define MOST(a, b) ((a) > (b) ? (a) : (b))
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
"""
"""What the sources share: ``EACH`` lets the threads take the numbers from 0 to ``n`` in turn."""
_BLOCK = 256
_MOST_BLOCKS = 65535
DEVICE_KERNELS: dict[str, Kernel] = {}
"""All kernels of the modules that are imported, by name."""


class Kernel:
    """A function in CUDA's C.

    Args:
        name: The name of the function.
        source: Its definition, ``extern "C" __global__ void name(...)``; the prelude comes before it.

    Attributes:
        source: The whole source.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, PRELUDE + source
        DEVICE_KERNELS[name] = self

    def __call__(self, xp: Any, number: int, *args: Any) -> None:
        """Run it.

        Args:
            xp: CuPy.
            number: Values that threads take in turn.
            args: Arrays, C-contiguous, float32 or int32; whole numbers go as int32, others as float32.
        """
        if not number:
            return
        blocks = min(-(-number // _BLOCK), _MOST_BLOCKS)
        _compiled(xp, self.name)((blocks,), (_BLOCK,), tuple(map(_argument, args)))


def _argument(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value


@functools.cache
def _compiled(xp: Any, name: str) -> Any:
    return xp.RawKernel(DEVICE_KERNELS[name].source, name)


def has_kernel(array: Any) -> bool:
    """Whether kernels take an array: a float32 one on a GPU."""
    return not isinstance(array, np.ndarray) and array.dtype == np.float32


def contiguous(array: Any) -> tuple[Any, Any]:
    """An array as kernels read it, C-contiguous, and its module."""
    xp = chainer.backend.get_array_module(array)
    return xp.ascontiguousarray(array), xp
