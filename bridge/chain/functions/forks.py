"""What the layers of Caffe's forks need beside Chainer's functions; looked up through ``F``.

All of it works on NumPy and CuPy arrays alike, and is differentiable.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.bn import BN
    from bridge.layers.psroi_pooling import PSROIPooling

F = chainer.functions


def fork_batch_norm(x: Any, link: Any, layer: BN) -> Any:
    """The BN of PSPNet, TSN or SegNet, by stored statistics or by the batch's own.

    Args:
        x: Variable (N, C, ...).
        link: Holds ``gamma`` and ``beta``, and perhaps ``mean`` and ``variance``.
        layer: The layer's parameters.

    Source: bn_layer.cpp of PSPNet and SegNet.
    """
    gamma, beta = (_per_channel(array, x.ndim) for array in (link.gamma, link.beta))
    stored = hasattr(link, "mean")
    if not stored and layer.bn_mode == "INFERENCE":
        return x * gamma + beta
    train = stored and chainer.config.train and not layer.frozen and not getattr(link, "frozen", False)
    if stored and layer.stored and not train:
        mean, variance = (_per_channel(array, x.ndim) for array in (link.mean, link.variance))
        return (x - mean) / F.sqrt(variance + layer.eps) * gamma + beta
    axes = (0, *range(2, x.ndim))
    if train:
        _accumulate(x.array, axes, link, layer.momentum)
    centred = x - F.mean(x, axes, keepdims=True)
    return centred / F.sqrt(F.mean(centred**2, axes, keepdims=True) + layer.eps) * gamma + beta


def _per_channel(values: Any, rank: int) -> Any:
    return F.reshape(values, (values.size, *[1] * (rank - 2)))


def _accumulate(x: Any, axes: Shape, link: Any, momentum: float) -> None:
    """Move the stored statistics towards the batch's, as Caffe does in the forward pass."""
    for name, values in (("mean", x.mean(axis=axes)), ("variance", x.var(axis=axes))):
        old = getattr(link, name)
        setattr(link, name, (old * momentum + values.reshape(old.shape) * (1 - momentum)).astype(old.dtype))


def masked_unpooling(x: Any, mask: Any, space: Shape) -> Any:
    """Each value goes to its place in a plane of zeros; of several for one place the last one.

    Args:
        x: Variable (N, C, H, W).
        mask: Variable (N, C, H, W): the place in the plane, counted along its rows.
        space: (height, width) of the plane.

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


def corner_aligned_resize(x: Any, space: Shape) -> Any:
    """Bilinear resizing that keeps the corners.

    Args:
        x: Variable (N, C, H, W).
        space: (height, width) of the result.

    Source: interp.cpp of DeepLab.
    """
    for axis, size in zip((2, 3), space, strict=True):
        if x.shape[axis] != size:
            x = _interpolated(x, axis, size)
    return x


def _interpolated(x: Any, axis: int, size: int) -> Any:
    xp = chainer.backend.get_array_module(x)
    ratio = (x.shape[axis] - 1) / (size - 1) if size > 1 else 0.0
    at = xp.arange(size, dtype=xp.float32) * xp.float32(ratio)
    before = at.astype(xp.int64)
    after = xp.minimum(before + 1, x.shape[axis] - 1)
    weight = (at - before).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    leading = (slice(None),) * axis
    return x[(*leading, before)] * (1 - weight) + x[(*leading, after)] * weight


def _rounded(xp: Any, x: Any) -> Any:
    """C's ``round``: halves go away from zero."""
    whole = xp.floor(xp.absolute(x))
    return xp.sign(x) * (whole + (xp.absolute(x) - whole >= 0.5))


def roi_max_pooling(x: Any, rois: Any, pooled: Shape, scale: float) -> Any:
    """The maximum in each cell of a grid over each region; 0 where a cell is empty.

    Args:
        x: Variable (N, C, H, W).
        rois: Variable (R, 5): image, x1, y1, x2, y2.
        pooled: (height, width) of the grid.
        scale: From the regions' coordinates to those of ``x``.

    Source: roi_pooling_layer.cpp of Fast R-CNN.
    """
    xp = chainer.backend.get_array_module(x)
    corners = _rounded(xp, rois.array[:, 1:] * xp.float32(scale))
    whole = xp.concatenate([rois.array[:, :1], corners], axis=1)
    if xp is not np:
        return F.roi_pooling_2d(x, whole, *pooled, 1.0)
    place, full = _maxima(x.array, whole.astype(np.int64), pooled)
    return F.get_item(F.reshape(x, (-1,)), place) * full


def _maxima(x: np.ndarray, rois: np.ndarray, pooled: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Where in the flat array each maximum is, (R, C, pooled...) int64, and 1 where there is one, else 0."""
    channels, height, width = x.shape[1:]
    place = np.zeros((len(rois), channels, *pooled), np.int64)
    full = np.zeros(place.shape, x.dtype)
    for n, (image, left, top, right, bottom) in enumerate(rois):
        base = (image * channels + np.arange(channels)) * height * width
        rows, columns = _cells(top, bottom, pooled[0], height), _cells(left, right, pooled[1], width)
        for (i, (h, h_end)), (j, (w, w_end)) in itertools.product(enumerate(rows), enumerate(columns)):
            if h < h_end and w < w_end:
                best = x[image, :, h:h_end, w:w_end].reshape(channels, -1).argmax(axis=1)
                place[n, :, i, j] = base + (h + best // (w_end - w)) * width + w + best % (w_end - w)
                full[n, :, i, j] = 1
    return place, full


def _cells(first: int, last: int, cells: int, extent: int) -> list[tuple[int, int]]:
    """First place of each cell along one axis and the one after its last, in Caffe's single precision."""
    size = np.float32(max(last - first + 1, 1)) / np.float32(cells)
    edges = [(np.floor(np.float32(i) * size), np.ceil(np.float32(i + 1) * size)) for i in range(cells)]
    return [(min(max(int(a) + first, 0), extent), min(max(int(b) + first, 0), extent)) for a, b in edges]


def position_sensitive_pooling(x: Any, rois: Any, layer: PSROIPooling) -> Any:
    """The mean in each cell of a grid over each region, each cell of a channel of its own.

    Args:
        x: Variable (N, output_dim x group_size^2, H, W).
        rois: Variable (R, 5): image, x1, y1, x2, y2.
        layer: The layer's parameters.

    Source: psroi_pooling_layer.cu of R-FCN.
    """
    xp = chainer.backend.get_array_module(x)
    size, (height, width) = layer.group_size, x.shape[2:]
    corners = _rounded(xp, rois.array[:, 1:])
    scale = xp.float32(layer.spatial_scale)
    start, end = corners[:, :2] * scale, (corners[:, 2:] + 1) * scale
    cell = (xp.maximum(end - start, xp.float32(0.1)) / xp.float32(size))[:, :, None]
    places, start = xp.arange(size, dtype=xp.float32), start[:, :, None]
    limit = xp.array([width, height])[:, None]
    low = xp.minimum(xp.maximum(xp.floor(places * cell + start), 0), limit).astype(xp.int64)
    high = xp.minimum(xp.maximum(xp.ceil((places + 1) * cell + start), 0), limit).astype(xp.int64)
    left, right = (bound[:, 0][:, None, None, :] for bound in (low, high))
    top, bottom = (bound[:, 1][:, None, :, None] for bound in (low, high))
    # sums over rectangles from the corner, in double precision, so that their differences are exact enough
    sums = F.cumsum(F.cumsum(F.cast(x, "float64"), axis=2), axis=3)
    sums = F.pad(sums, [(0, 0), (0, 0), (1, 0), (1, 0)], "constant", constant_values=0)
    image, channel = rois.array[:, 0].astype(xp.int64)[:, None, None, None], xp.asarray(layer.channels())[None]
    total = sums[image, channel, bottom, right] - sums[image, channel, top, right]
    total += sums[image, channel, top, left] - sums[image, channel, bottom, left]
    area = xp.maximum(bottom - top, 0) * xp.maximum(right - left, 0)
    return F.cast(total * (area > 0) / xp.maximum(area, 1), x.dtype)
