"""ROIPooling: the maximum in each cell of a grid over each region.

Source: roi_pooling_layer.cpp of Fast R-CNN.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous, has_kernel
from bridge.chain.functions.helper_rounding import round_half_away
from bridge.schema import Shape

F = chainer.functions
_CELL = """
        int first_row = rois[r * 5 + 2], first_column = rois[r * 5 + 1];
        float high = (float)MOST(rois[r * 5 + 4] - first_row + 1, 1) / rows;
        float wide = (float)MOST(rois[r * 5 + 3] - first_column + 1, 1) / columns;
        int top = LEAST(MOST((int)floorf(p * high) + first_row, 0), H);
        int bottom = LEAST(MOST((int)ceilf((p + 1) * high) + first_row, 0), H);
        int left = LEAST(MOST((int)floorf(q * wide) + first_column, 0), W);
        int right = LEAST(MOST((int)ceilf((q + 1) * wide) + first_column, 0), W);
"""
"""The pixels of cell (p, q) of region r."""
_forward = Kernel(
    "roi_pooling",
    f"""extern "C" __global__ void roi_pooling(
    const float* x, const int* rois, float* y, int* place, int n, int C, int H, int W, int rows, int columns) {{
    EACH(i, n) {{
        int q = i % columns, p = i / columns % rows, c = i / columns / rows % C, r = i / columns / rows / C;{_CELL}
        const float* plane = x + ((long long)rois[r * 5] * C + c) * H * W;
        float best = 0;
        int at = -1;
        for (int h = top; h < bottom; ++h)
            for (int w = left; w < right; ++w)
                if (at < 0 || plane[h * W + w] > best) {{ best = plane[h * W + w]; at = h * W + w; }}
        y[i] = best;
        place[i] = at;
    }}
}}""",
)
_backward = Kernel(
    "roi_pooling_gradient",
    """extern "C" __global__ void roi_pooling_gradient(
    const float* gy, const int* rois, const int* place, float* gx,
    int n, int C, int H, int W, int rows, int columns, int regions) {
    EACH(i, n) {
        int at = i % (H * W), c = i / (H * W) % C, image = i / (H * W) / C;
        float sum = 0;
        for (int r = 0; r < regions; ++r) {
            if (rois[r * 5] != image) continue;
            long long first = ((long long)r * C + c) * rows * columns;
            for (int cell = 0; cell < rows * columns; ++cell)
                if (place[first + cell] == at) sum += gy[first + cell];
        }
        gx[i] = sum;
    }
}""",
)


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
    if has_kernel(x.array):
        return _ROIPooling(whole.astype(np.int32), pooled).apply((x,))[0]
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


class _ROIPooling(chainer.FunctionNode):
    """The same on a GPU, float32, for rounded regions (R, 5) int32."""

    def __init__(self, rois: Any, pooled: Shape) -> None:
        self.rois, self.pooled = rois, pooled

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        x, xp = contiguous(inputs[0])
        self.rois, self.shape = xp.ascontiguousarray(self.rois), x.shape
        y = xp.empty((len(self.rois), x.shape[1], *self.pooled), x.dtype)
        self.place = xp.empty(y.shape, np.int32)
        _forward(xp, y.size, x, self.rois, y, self.place, y.size, *x.shape[1:], *self.pooled)
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return _ROIPoolingGradient(self).apply(grad_outputs)


class _ROIPoolingGradient(chainer.FunctionNode):
    def __init__(self, function: _ROIPooling) -> None:
        self.function = function

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        gy, xp = contiguous(inputs[0])
        own = self.function
        gx = xp.empty(own.shape, gy.dtype)
        extents = (*own.shape[1:], *own.pooled, len(own.rois))
        _backward(xp, gx.size, gy, own.rois, own.place, gx, gx.size, *extents)
        return (gx,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        own, xp = self.function, grad_outputs[0].xp
        planes = own.rois[:, :1].astype(np.int64) * own.shape[1] + xp.arange(own.shape[1])
        at = planes[:, :, None, None] * (own.shape[2] * own.shape[3]) + xp.maximum(own.place, 0)
        return (F.get_item(F.reshape(grad_outputs[0], (-1,)), at) * (own.place >= 0).astype(np.float32),)
