"""Interp: bilinear resizing that keeps the corners.

Source: interp.cpp of DeepLab.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous, has_kernel
from bridge.schema import Shape, count

_forward = Kernel(
    "interp",
    """extern "C" __global__ void interp(
    const float* x, float* y, int n, int before, int after, int inner, float ratio) {
    EACH(i, n) {
        int k = i % inner, j = i / inner % after;
        long long outer = i / inner / after;
        float at = j * ratio;
        int low = (int)at, high = LEAST(low + 1, before - 1);
        float weight = at - low;
        const float* line = x + outer * before * inner + k;
        y[i] = line[(long long)low * inner] * (1 - weight) + line[(long long)high * inner] * weight;
    }
}""",
)
_backward = Kernel(
    "interp_gradient",
    """extern "C" __global__ void interp_gradient(
    const float* gy, float* gx, int n, int before, int after, int inner, float ratio) {
    EACH(i, n) {
        int k = i % inner, place = i / inner % before;
        long long outer = i / inner / before;
        int first = ratio > 0 ? (int)((place - 1) / ratio) - 1 : 0;
        int last = ratio > 0 ? (int)((place + 1) / ratio) + 1 : after - 1;
        float sum = 0;
        for (int j = MOST(first, 0); j <= LEAST(last, after - 1); ++j) {
            float at = j * ratio;
            int low = (int)at, high = LEAST(low + 1, before - 1);
            float weight = at - low, g = gy[(outer * after + j) * inner + k];
            if (low == place) sum += g * (1 - weight);
            if (high == place) sum += g * weight;
        }
        gx[i] = sum;
    }
}""",
)


def caffe_interp(x: Any, space: Shape) -> Any:
    """Bilinear resizing in which the first and the last pixel of each axis keep their values.

    Args:
        x: Variable (N, C, H, W).
        space: (height, width) of the result.

    Returns:
        Variable (N, C, height, width).

    Source: interp.cpp of DeepLab.
    """
    for axis, size in zip((2, 3), space, strict=True):
        if x.shape[axis] != size:
            x = _interpolated(x, axis, size)
    return x


def _interpolated(x: Any, axis: int, size: int) -> Any:
    """``x`` with ``size`` values along ``axis``."""
    if has_kernel(x.array):
        return _Interp(axis, size).apply((x,))[0]
    xp = chainer.backend.get_array_module(x)
    ratio = (x.shape[axis] - 1) / (size - 1) if size > 1 else 0.0
    at = xp.arange(size, dtype=xp.float32) * xp.float32(ratio)
    before = at.astype(xp.int64)
    after = xp.minimum(before + 1, x.shape[axis] - 1)
    weight = (at - before).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    leading = (slice(None),) * axis
    return x[(*leading, before)] * (1 - weight) + x[(*leading, after)] * weight


class _Interp(chainer.FunctionNode):
    """The same on a GPU, float32. Each pass along an axis is one kernel."""

    def __init__(self, axis: int, size: int) -> None:
        self.axis, self.size = axis, size

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        x, xp = contiguous(inputs[0])
        self.shape = x.shape
        y = xp.empty((*x.shape[: self.axis], self.size, *x.shape[self.axis + 1 :]), x.dtype)
        _forward(xp, y.size, x, y, y.size, *_line(x.shape, self.axis, self.size))
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return _InterpGradient(self.axis, self.shape).apply(grad_outputs)


class _InterpGradient(chainer.FunctionNode):
    def __init__(self, axis: int, shape: Shape) -> None:
        self.axis, self.shape = axis, shape

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        gy, xp = contiguous(inputs[0])
        self.size = gy.shape[self.axis]
        gx = xp.empty(self.shape, gy.dtype)
        _backward(xp, gx.size, gy, gx, gx.size, *_line(self.shape, self.axis, self.size))
        return (gx,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return _Interp(self.axis, self.size).apply(grad_outputs)


def _line(shape: Shape, axis: int, size: int) -> list[Any]:
    """The kernels' arguments: extents before and after, values between neighbours, and pixels from place to place."""
    ratio = np.float32((shape[axis] - 1) / (size - 1) if size > 1 else 0.0)
    return [shape[axis], size, count(shape[axis + 1 :]), ratio]
