"""Upsample: SegNet's unpooling by the places that a pooling gave.

Source: upsample_layer.cpp of SegNet.
"""

from __future__ import annotations

from typing import Any

from bridge.chain.functions import chainer
from bridge.schema import Shape

F = chainer.functions


def caffe_upsample(x: Any, mask: Any, space: Shape) -> Any:
    """Put each value at its place in a plane of zeros; of several values for one place, the last one is kept.

    Args:
        x: Variable (N, C, H, W).
        mask: Variable (N, C, H, W): the place in the plane, counted row by row. In a plane of 4 columns,
            place 6 is row 1, column 2.
        space: (height, width) of the plane.

    Returns:
        Variable (N, C, height, width).

    Source: upsample_layer.cpp of SegNet.
    """
    xp = chainer.backend.get_array_module(x)
    planes, size = x.shape[0] * x.shape[1], space[0] * space[1]
    place = mask.array.astype(xp.int64).reshape(planes, -1) + (xp.arange(planes) * size)[:, None]
    place = place.reshape(-1)
    order = xp.arange(place.size, dtype=xp.int32)
    last = xp.zeros(planes * size, xp.int32)
    xp.maximum.at(last, place, order)
    kept = (last[place] == order).astype(x.dtype)
    plane = F.scatter_add(xp.zeros(planes * size, x.dtype), place, F.reshape(x, (-1,)) * kept)
    return F.reshape(plane, (*x.shape[:2], *space))
