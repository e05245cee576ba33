"""ROIPooling: the maximum in each cell of a grid over each region.

Source: roi_pooling_layer.cpp of Fast R-CNN.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_rounding import round_half_away
from bridge.schema import Shape

F = chainer.functions


def caffe_roi_pooling(x: Any, rois: Any, pooled: Shape, scale: float) -> Any:
    """The maximum in each cell of a grid over each region; 0 where a cell is empty.

    Args:
        x: Variable (N, C, H, W).
        rois: Variable (R, 5): index of the image, x1, y1, x2, y2.
        pooled: (height, width) of the grid.
        scale: Factor from the regions' coordinates to those of ``x``, such as 1 / 16.

    Returns:
        Variable (R, C, height, width).

    Source: roi_pooling_layer.cpp of Fast R-CNN.
    """
    xp = chainer.backend.get_array_module(x)
    corners = round_half_away(xp, rois.array[:, 1:] * xp.float32(scale))
    whole = xp.concatenate([rois.array[:, :1], corners], axis=1)
    if xp is not np:
        return F.roi_pooling_2d(x, whole, *pooled, 1.0)
    place, full = _maxima(x.array, whole.astype(np.int64), pooled)
    return F.get_item(F.reshape(x, (-1,)), place) * full


def _maxima(x: np.ndarray, rois: np.ndarray, pooled: Shape) -> tuple[np.ndarray, np.ndarray]:
    """The index of each maximum in the flat array, (R, C, height, width) int64, and 1 where there is one, else 0."""
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
    """First pixel of each cell along one axis and the one after its last, in Caffe's single precision."""
    size = np.float32(max(last - first + 1, 1)) / np.float32(cells)
    edges = [(np.floor(np.float32(i) * size), np.ceil(np.float32(i + 1) * size)) for i in range(cells)]
    return [(min(max(int(a) + first, 0), extent), min(max(int(b) + first, 0), extent)) for a, b in edges]
