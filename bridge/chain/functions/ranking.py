"""Which values are largest, on NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any

from bridge.chain.functions import chainer


def largest(x: Any, k: int, axis: int) -> tuple[Any, Any]:
    """The ``k`` largest values along an axis, largest first; of equal ones the last comes first.

    Args:
        x: Array.
        k: How many.
        axis: Along which axis.

    Returns:
        Their places and the values themselves, both of the array's dtype and with extent ``k`` along the axis.

    Source: argmax_layer.cpp.
    """
    xp = chainer.backend.get_array_module(x)
    backwards = xp.flip(x, axis)
    order = xp.argsort(-backwards, axis=axis, kind="stable").take(xp.arange(k), axis=axis)
    places = (x.shape[axis] - 1 - order).astype(x.dtype)
    return places, xp.take_along_axis(backwards, order, axis)
