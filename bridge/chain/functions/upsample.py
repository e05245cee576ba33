"""Upsample: SegNet's unpooling by the places that a pooling gave.

Source: upsample_layer.cpp of SegNet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous, has_kernel
from bridge.schema import Shape, count

F = chainer.functions
_forward = Kernel(
    "upsample",
    """extern "C" __global__ void upsample(
    const float* x, const float* mask, float* y, int* owner, int planes, int size, int space) {
    EACH(plane, planes) {
        for (int i = 0; i < space; ++i) { y[plane * space + i] = 0; owner[plane * space + i] = -1; }
        for (int i = 0; i < size; ++i) {
            int place = (int)mask[plane * size + i];
            if (place < 0 || place >= space) continue;
            y[plane * space + place] = x[plane * size + i];
            owner[plane * space + place] = i;
        }
    }
}""",
)
_backward = Kernel(
    "upsample_gradient",
    """extern "C" __global__ void upsample_gradient(
    const float* gy, const float* mask, const int* owner, float* gx, int n, int size, int space) {
    EACH(i, n) {
        int place = (int)mask[i];
        long long at = i / size * space + place;
        gx[i] = place >= 0 && place < space && owner[at] == i % size ? gy[at] : 0;
    }
}""",
)


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
    if has_kernel(x.array):
        return _Upsample(mask.array.astype(x.dtype), space).apply((x,))[0]
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


class _Upsample(chainer.FunctionNode):
    """The same on a GPU, float32: a thread for each plane, so that the last of several values is kept."""

    def __init__(self, mask: Any, space: Shape) -> None:
        self.mask, self.space = mask, space

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        x, xp = contiguous(inputs[0])
        self.mask, _ = contiguous(self.mask)
        y = xp.empty((*x.shape[:2], *self.space), x.dtype)
        self.owner = xp.empty(y.shape, np.int32)
        planes, size, space = count(x.shape[:2]), count(x.shape[2:]), count(self.space)
        _forward(xp, planes, x, self.mask, y, self.owner, planes, size, space)
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return _UpsampleGradient(self).apply(grad_outputs)


class _UpsampleGradient(chainer.FunctionNode):
    def __init__(self, function: _Upsample) -> None:
        self.function = function

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        gy, xp = contiguous(inputs[0])
        own = self.function
        gx = xp.empty(own.mask.shape, gy.dtype)
        size, space = count(gx.shape[2:]), count(own.space)
        _backward(xp, gx.size, gy, own.mask, own.owner, gx, gx.size, size, space)
        return (gx,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return _Upsample(self.function.mask, self.function.space).apply(grad_outputs)
