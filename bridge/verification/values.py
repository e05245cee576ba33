"""What the values of a blob are like: not finite, denormal, all zero; each found in one pass."""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import numpy as np

from bridge.schema import Shape, count

_CHUNK = 1 << 18
"""Values that are looked at at once: they stay in the cache."""


class Values(NamedTuple):
    """What is to be said of a blob's values.

    Attributes:
        shape: The blob's shape.
        nonfinite: How many are NaN or infinite.
        first_nonfinite: Place of the first of these in the flat array.
        denormal: How many are denormal.
        dead: How many of the first axis' slices are all zero.
    """

    shape: Shape
    nonfinite: int = 0
    first_nonfinite: int = -1
    denormal: int = 0
    dead: int = 0


def look(array: np.ndarray) -> Values:
    """Look at all values of a float array once."""
    info = np.finfo(array.dtype)
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    bits = np.ascontiguousarray(array).reshape(-1).view(unsigned)
    infinity = np.array(np.inf, array.dtype).view(unsigned)[()]
    magnitude = unsigned.type((1 << (8 * unsigned.itemsize - 1)) - 1)
    mantissa = unsigned.type((1 << info.nmant) - 1)
    nonfinite, first, denormal = 0, -1, 0
    for start in range(0, bits.size, _CHUNK):
        part = bits[start : start + _CHUNK] & magnitude
        if part.max() >= infinity:
            wrong = part >= infinity
            first = start + int(wrong.argmax()) if first < 0 else first
            nonfinite += int(wrong.sum())
        part -= unsigned.type(1)  # zero becomes the largest number, so one comparison finds denormals
        small = part < mantissa
        if small.any():
            denormal += int(small.sum())
    return Values(array.shape, nonfinite, first, denormal, _dead(array))


def _dead(array: np.ndarray) -> int:
    """Slices of the first axis that are all zero; only those that begin with zero are read."""
    if array.ndim < 2 or not array.size:
        return 0
    rows = array.reshape(len(array), -1)
    return sum(not rows[row].any() for row in np.flatnonzero(rows[:, 0] == 0))


def block_groups(weight: np.ndarray) -> int:
    """The largest number of groups of which a dense kernel is the block-diagonal form; 1 if of none.

    Args:
        weight: (O, I, kernel...).

    Source: Chainer's ``caffe_function._ConvolutionBlob``.
    """
    if weight.ndim < 3 or not weight.size or weight[0, -1].any() or weight[-1, 0].any():
        return 1  # the corners lie outside the blocks of any grouping
    used: Any = weight.reshape(*weight.shape[:2], count(weight.shape[2:])).any(axis=2)
    common = gcd(*used.shape)
    return next((n for n in range(common, 1, -1) if common % n == 0 and _is_block_diagonal(used, n)), 1)


def _is_block_diagonal(used: np.ndarray, groups: int) -> bool:
    """Whether no pair of channels is used outside the blocks, and some in each."""
    rows, columns = used.shape[0] // groups, used.shape[1] // groups
    blocks = used.reshape(groups, rows, groups, columns).any(axis=(1, 3))
    return bool((blocks == np.eye(groups, dtype=bool)).all())
