"""PSROIPooling: the mean in each cell of a grid over each region, each cell from a channel of its own.

Source: psroi_pooling_layer.cu of R-FCN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous, has_kernel
from bridge.chain.functions.helper_rounding import round_half_away
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.psroi_pooling import PSROIPooling

F = chainer.functions
_forward = Kernel(
    "psroi_pooling",
    """extern "C" __global__ void psroi_pooling(
    const float* x, const int* images, const int* low, const int* high, float* y,
    int n, int C, int H, int W, int outputs, int size) {
    EACH(i, n) {
        int cells = outputs * size * size;
        int column = i % size, row = i / size % size, cell = i % cells, r = i / cells;
        int left = low[(r * 2) * size + column], right = high[(r * 2) * size + column];
        int top = low[(r * 2 + 1) * size + row], bottom = high[(r * 2 + 1) * size + row];
        const float* plane = x + ((long long)images[r] * C + cell) * H * W;
        float sum = 0;
        for (int h = top; h < bottom; ++h)
            for (int w = left; w < right; ++w) sum += plane[h * W + w];
        y[i] = top < bottom && left < right ? sum / ((bottom - top) * (right - left)) : 0;
    }
}""",
)
_backward = Kernel(
    "psroi_pooling_gradient",
    """extern "C" __global__ void psroi_pooling_gradient(
    const float* gy, const int* images, const int* low, const int* high, float* gx,
    int n, int C, int H, int W, int outputs, int size, int regions) {
    EACH(i, n) {
        int w = i % W, h = i / W % H, cell = i / W / H % C, image = i / W / H / C;
        int column = cell % size, row = cell / size % size;
        float sum = 0;
        for (int r = 0; r < regions; ++r) {
            int left = low[(r * 2) * size + column], right = high[(r * 2) * size + column];
            int top = low[(r * 2 + 1) * size + row], bottom = high[(r * 2 + 1) * size + row];
            if (images[r] == image && left <= w && w < right && top <= h && h < bottom)
                sum += gy[(long long)r * outputs * size * size + cell] / ((bottom - top) * (right - left));
        }
        gx[i] = sum;
    }
}""",
)


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
    if has_kernel(x.array):
        images = rois.array[:, 0].astype(np.int32)
        return _PSROI(images, low.astype(np.int32), high.astype(np.int32), layer.channels().shape).apply((x,))[0]
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


class _PSROI(chainer.FunctionNode):
    """The same on a GPU, float32.

    Args:
        images: The image of each region, (R) int32.
        low, high: The bounds of the cells, (R, 2 for x and y, group_size) int32.
        cells: (output_dim, group_size, group_size); the cells, counted in this order, are the channels of the input.
    """

    def __init__(self, images: Any, low: Any, high: Any, cells: Shape) -> None:
        self.images, self.low, self.high, self.cells = images, low, high, cells

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        x, xp = contiguous(inputs[0])
        self.shape = x.shape
        y = xp.empty((len(self.images), *self.cells), x.dtype)
        bounds = (self.images, self.low, self.high)
        _forward(xp, y.size, x, *bounds, y, y.size, *x.shape[1:], *self.cells[:2])
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return _PSROIGradient(self).apply(grad_outputs)


class _PSROIGradient(chainer.FunctionNode):
    def __init__(self, function: _PSROI) -> None:
        self.function = function

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        gy, xp = contiguous(inputs[0])
        own = self.function
        gx, bounds = xp.empty(own.shape, gy.dtype), (own.images, own.low, own.high)
        extents = (*own.shape[1:], *own.cells[:2], len(own.images))
        _backward(xp, gx.size, gy, *bounds, gx, gx.size, *extents)
        return (gx,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        own = self.function
        return _PSROI(own.images, own.low, own.high, own.cells).apply(grad_outputs)
