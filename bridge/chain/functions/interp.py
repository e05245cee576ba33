"""Interp: bilinear resizing that keeps the corners.

Source: interp.cpp of DeepLab.
"""

from __future__ import annotations

from typing import Any

from bridge.chain.functions import chainer
from bridge.schema import Shape


def caffe_interp(x: Any, space: Shape) -> Any:
    """Bilinear resizing in which the first and the last pixel of each axis keep their values.

    Args:
        x: Variable (N, C, H, W).
        space: (height, width) of the result.

    Returns:
        Variable (N, C, height, width).

    Source: interp.cpp of DeepLab.
    """
    for axis, size in zip((2, 3), space, strict=True):
        if x.shape[axis] != size:
            x = _interpolated(x, axis, size)
    return x


def _interpolated(x: Any, axis: int, size: int) -> Any:
    """``x`` with ``size`` values along ``axis``."""
    xp = chainer.backend.get_array_module(x)
    ratio = (x.shape[axis] - 1) / (size - 1) if size > 1 else 0.0
    at = xp.arange(size, dtype=xp.float32) * xp.float32(ratio)
    before = at.astype(xp.int64)
    after = xp.minimum(before + 1, x.shape[axis] - 1)
    weight = (at - before).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    leading = (slice(None),) * axis
    return x[(*leading, before)] * (1 - weight) + x[(*leading, after)] * weight
