"""Pooling with Caffe's windows: by our own functions, for float16 and float64 on a GPU by Chainer's.

Source: pooling_layer.cpp, pooling_layer.cu.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import has_kernel
from bridge.chain.functions.helper_windows import Axes, MaxPooling, WindowSum, first_places
from bridge.layers.pooled_axis import LOWEST

if TYPE_CHECKING:
    from bridge.layers.pooling import Pooling

F = chainer.functions


def caffe_pooling(x: Any, layer: Pooling) -> Any:
    """MAX, AVE or STOCHASTIC pooling with the windows of the layer.

    Args:
        x: Variable (N, C, H, W).
        layer: The layer's parameters.

    Returns:
        Variable (N, C, rows, columns). Where a MAX layer has two tops, a tuple of that and of the places of the
        maxima in the plane (H, W), as numbers in the same shape and dtype.

    Source: pooling_layer.cpp, pooling_layer.cu.
    """
    return {"MAX": _max, "AVE": _average, "STOCHASTIC": _stochastic}[layer.pool](x, layer)


def _max(x: Any, layer: Pooling) -> Any:
    if x.xp is not np and not has_kernel(x.array):
        return max_by_chainer(x, layer)
    axes = layer.axes(x.shape[2:])
    function = MaxPooling(axes)
    (y,) = function.apply((x,))
    if len(layer.tops) < 2:
        return y
    place = first_places(x.array, y.array, axes) if function.place is None else function.place
    return y, chainer.as_variable(place.astype(x.dtype))


def _average(x: Any, layer: Pooling) -> Any:
    return _sums(x, layer) / _areas(layer.axes(x.shape[2:]), x.dtype.str, x.device.name, x.xp)


@functools.lru_cache(maxsize=256)
def _areas(axes: Axes, dtype: str, device: str, xp: Any) -> Any:
    """What AVE divides by, (1, 1, rows, columns); kept on the device, because a copy there would wait in each pass."""
    rows, columns = axes
    area = np.outer(rows.lengths, columns.lengths).astype(dtype)
    area[area == 0] = np.nan
    with chainer.using_device(chainer.get_device(device)):
        return xp.asarray(area[None, None])


def _stochastic(x: Any, layer: Pooling) -> Any:
    """The average of each window, weighted by the values themselves; 0 where their sum is not positive."""
    total = _sums(x, layer)
    positive = total.array > 0
    ratio = _sums(x**2, layer) / F.where(positive, total, x.xp.ones_like(total.array))
    return F.where(positive, ratio, x.xp.zeros_like(ratio.array))


def _sums(x: Any, layer: Pooling) -> Any:
    """The sum over each window; 0 where the window is empty."""
    if x.xp is not np and not has_kernel(x.array):
        return sums_by_chainer(x, layer)
    return WindowSum(layer.axes(x.shape[2:])).apply((x,))[0]


def max_by_chainer(x: Any, layer: Pooling) -> Any:
    """MAX pooling by Chainer's own function; arguments and result as in :func:`caffe_pooling`."""
    space = x.shape[2:]
    rows, columns = (axis.inside for axis in layer.axes(space))
    options = {"cover_all": layer.round_mode == "CEIL", "return_indices": len(layer.tops) > 1}
    pooled = F.max_pooling_2d(x, *layer.window(space), **options)
    if len(layer.tops) < 2:
        y = pooled if pooled.shape[2:] == (rows, columns) else pooled[:, :, :rows, :columns]
        return _with_empty(y, x, layer, LOWEST)
    y, place = (array[:, :, :rows, :columns] for array in pooled)
    mask = chainer.as_variable(_plane_index(x.xp, place, layer, space).astype(x.dtype))
    return _with_empty(y, x, layer, LOWEST), _with_empty(mask, x, layer, -1)


def _plane_index(xp: Any, place: Any, layer: Pooling, space: Any) -> Any:
    """Places in the plane (H, W), from the places in each window."""
    (_, width), (stride_h, stride_w), (pad_h, pad_w) = layer.window(space)
    row = xp.arange(place.shape[2])[:, None] * stride_h - pad_h + place // width
    column = xp.arange(place.shape[3]) * stride_w - pad_w + place % width
    return row * space[1] + column


def sums_by_chainer(x: Any, layer: Pooling) -> Any:
    """The sum over each window, computed from Chainer's average; 0 where the window is empty."""
    space = x.shape[2:]
    kernel, stride, pad = layer.window(space)
    trailing = tuple(axis.trailing for axis in layer.axes(space))
    if trailing != tuple(pad):
        x = F.pad(x, [(0, 0), (0, 0), *zip(pad, trailing, strict=True)], "constant", constant_values=0)
        pad = (0, 0)
    y = F.average_pooling_2d(x, kernel, stride, pad) * (kernel[0] * kernel[1])
    return _with_empty(y, x, layer, 0)


def _with_empty(y: Any, x: Any, layer: Pooling, value: float) -> Any:
    """``y`` with rows and columns of ``value`` added for the empty windows, which start behind the image."""
    empty = [(0, axis.empty) for axis in layer.axes(x.shape[2:])]
    if not any(map(any, empty)):
        return y
    return F.pad(y, [(0, 0), (0, 0), *empty], "constant", constant_values=value)
