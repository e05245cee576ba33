"""PSROIPooling: the mean in each cell of a grid over each region, each cell from a channel of its own.

Source: psroi_pooling_layer.cu of R-FCN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_rounding import round_half_away

if TYPE_CHECKING:
    from bridge.layers.psroi_pooling import PSROIPooling

F = chainer.functions


def caffe_psroi_pooling(x: Any, rois: Any, layer: PSROIPooling) -> Any:
    """The mean in each cell of a grid over each region; 0 for a cell without a pixel.

    Args:
        x: Variable (N, output_dim x group_size^2, H, W).
        rois: Variable (R, 5): index of the image, x1, y1, x2, y2.
        layer: The layer's parameters.

    Returns:
        Variable (R, output_dim, group_size, group_size).

    Source: psroi_pooling_layer.cu of R-FCN.
    """
    xp = chainer.backend.get_array_module(x)
    low, high = _bounds(xp, rois.array, layer, x.shape[2:])
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


def _bounds(xp: Any, rois: Any, layer: PSROIPooling, space: Any) -> tuple[Any, Any]:
    """First pixel of each cell and the one after its last, (R, 2 for x and y, group_size) int64."""
    size, (height, width) = layer.group_size, space
    corners = round_half_away(xp, rois[:, 1:])
    scale = xp.float32(layer.spatial_scale)
    start, end = corners[:, :2] * scale, (corners[:, 2:] + 1) * scale
    cell = (xp.maximum(end - start, xp.float32(0.1)) / xp.float32(size))[:, :, None]
    places, start = xp.arange(size, dtype=xp.float32), start[:, :, None]
    limit = xp.array([width, height])[:, None]
    low = xp.minimum(xp.maximum(xp.floor(places * cell + start), 0), limit).astype(xp.int64)
    high = xp.minimum(xp.maximum(xp.ceil((places + 1) * cell + start), 0), limit).astype(xp.int64)
    return low, high
