"""Pooling with Caffe's windows, of Chainer's variables. Source: pooling_layer.cpp, pooling_layer.cu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.layers.pooled_axis import LOWEST, divisor_correction

if TYPE_CHECKING:
    from bridge.layers.pooling import Pooling

F = chainer.functions


def caffe_pooling(x: Any, layer: Pooling) -> Any:
    """The layer's tops for a variable (N, C, H, W)."""
    if layer.pool == "MAX":
        return _max(x, layer)
    y = _mean(x, layer)
    if layer.pool == "STOCHASTIC":
        positive = y.array > 0
        ratio = _mean(x**2, layer) / F.where(positive, y, y.xp.ones_like(y.array))
        return _with_empty(F.where(positive, ratio, y.xp.zeros_like(y.array)), x, layer, 0)
    correction = divisor_correction(*layer.axes(x.shape[2:]))
    y = _with_empty(y, x, layer, 0)
    return y if (correction == 1).all() else y * y.xp.broadcast_to(y.xp.asarray(correction, dtype=y.dtype), y.shape)


def _max(x: Any, layer: Pooling) -> Any:
    space = x.shape[2:]
    rows, columns = (axis.inside for axis in layer.axes(space))
    options = {"cover_all": layer.round_mode == "CEIL", "return_indices": len(layer.tops) > 1}
    made = F.max_pooling_2d(x, *layer.window(space), **options)
    if len(layer.tops) < 2:
        y = made if made.shape[2:] == (rows, columns) else made[:, :, :rows, :columns]
        return _with_empty(y, x, layer, LOWEST)
    y, place = (array[:, :, :rows, :columns] for array in made)
    mask = chainer.as_variable(_plane_index(x.xp, place, layer, space).astype(x.dtype))
    return _with_empty(y, x, layer, LOWEST), _with_empty(mask, x, layer, -1)


def _plane_index(xp: Any, place: Any, layer: Pooling, space: Any) -> Any:
    """From places in each window to places in the plane (H, W)."""
    (_, width), (stride_h, stride_w), (pad_h, pad_w) = layer.window(space)
    row = xp.arange(place.shape[2])[:, None] * stride_h - pad_h + place // width
    column = xp.arange(place.shape[3]) * stride_w - pad_w + place % width
    return row * space[1] + column


def _mean(x: Any, layer: Pooling) -> Any:
    """The sum over each window that starts inside the image, over the kernel's area."""
    space = x.shape[2:]
    kernel, stride, pad = layer.window(space)
    trailing = tuple(axis.trailing for axis in layer.axes(space))
    if trailing == tuple(pad):
        return F.average_pooling_2d(x, kernel, stride, pad)
    borders = [(0, 0), (0, 0), *zip(pad, trailing, strict=True)]
    return F.average_pooling_2d(F.pad(x, borders, "constant", constant_values=0), kernel, stride)


def _with_empty(y: Any, x: Any, layer: Pooling, value: float) -> Any:
    """The empty windows behind those that start inside the image."""
    empty = [(0, axis.empty) for axis in layer.axes(x.shape[2:])]
    if not any(map(any, empty)):
        return y
    return F.pad(y, [(0, 0), (0, 0), *empty], "constant", constant_values=value)
