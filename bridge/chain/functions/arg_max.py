"""ArgMax: the largest values and their places.

Source: argmax_layer.cpp.
"""

from __future__ import annotations

from typing import Any

from bridge.chain.functions import chainer


def caffe_arg_max(x: Any, k: int, axis: int) -> tuple[Any, Any]:
    """The ``k`` largest values along an axis, largest first; of equal values the last one comes first.

    For example, the 2 largest of 5, 7, 7 are 7 at place 2 and 7 at place 1.

    Args:
        x: Array of any shape, not a variable: Caffe's layer has no gradient.
        k: Number of values, at most the extent of the axis.
        axis: The axis.

    Returns:
        The places and the values, two arrays of the dtype of ``x`` and of its shape, but for ``k`` along the axis.

    Source: argmax_layer.cpp.
    """
    xp = chainer.backend.get_array_module(x)
    backwards = xp.flip(x, axis)
    order = xp.argsort(-backwards, axis=axis, kind="stable").take(xp.arange(k), axis=axis)
    places = (x.shape[axis] - 1 - order).astype(x.dtype)
    return places, xp.take_along_axis(backwards, order, axis)
