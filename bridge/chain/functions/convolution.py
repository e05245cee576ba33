"""Convolution and its transpose: on the CPU a matrix product per image and group, elsewhere Chainer's own.

On the CPU, Chainer multiplies all images at once and then transposes the result, so that channels
come before positions; with groups it transposes the columns too. One product per image needs no
transposition. Columns are made for a few images at a time, so they stay in the cache, and an image's
result does not depend on the other images of the batch. Second derivatives are Chainer's.

Both function nodes are in this file, because each is a part of the other's gradient.

Source: base_conv_layer.cpp, im2col.cpp.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_fast_convolution import FastConvolution, is_covered
from bridge.chain.functions.helper_parts import is_fast
from bridge.chain.functions.helper_tail import NO_TAIL, Tail
from bridge.schema import Shape, count

F = chainer.functions
_forward: Any = F.connection.convolution_2d
_transposed: Any = F.connection.deconvolution_2d
_COLUMNS = 1 << 20
"""Bytes of columns to make at a time, so that they stay in the cache; at least one image's."""


def caffe_convolution(
    x: Any, W: Any, b: Any, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int,
    tail: Tail = NO_TAIL,
) -> Any:  # fmt: skip
    """Grouped, dilated convolution over any number of spatial axes.

    Args:
        x: Variable (N, C, spatial axes...).
        W: Parameter or variable (O, C / groups, kernel...).
        b: Parameter or variable (O), or ``None``.
        stride: Per spatial axis.
        pad: Per spatial axis, on both sides.
        dilation: Per spatial axis; 1 for an ordinary convolution.
        groups: Number of groups of channels.
        tail: What follows per channel and is computed with it.

    Returns:
        Variable (N, O, spatial axes...).

    Source: base_conv_layer.cpp; ``chainer.functions.convolution_nd``.
    """
    options = {"stride": tuple(stride), "pad": tuple(pad), "dilate": tuple(dilation), "groups": groups}
    fast = is_fast(x, W, b) and is_covered(x, W, groups)
    own = tail.factor if fast and tail.fixed else None
    W, b = tail.folded(W, b) if own is None else (W, tail.shifted(b))
    inputs = (x, W) if b is None else (x, W, b)
    if fast:
        return FastConvolution(options, tail.positive, W.requires_grad, own).apply(inputs)[0]
    y = F.convolution_nd(*inputs, **options) if x.ndim != 4 else Convolution(**options).apply(inputs)[0]
    return F.relu(y) if tail.positive else y


class _Accumulating(chainer.FunctionNode):
    """Adds to the gradients of weight and bias one image after the other, as Caffe does, from their present values."""

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradients of the inputs ``indexes``, added to the gradients that they already have."""
        (gy,) = grad_outputs
        if chainer.config.enable_backprop or gy.xp is not np:
            gradients: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return gradients
        before = dict(zip(indexes, grad_inputs, strict=True))
        gradients = super().backward_accumulate((0,), grad_outputs, (before[0],)) if 0 in before else ()
        if 1 in before:
            x, W = self.get_retained_inputs()
            total = np.zeros(W.shape, W.dtype) if before[1] is None else before[1].array.copy()
            gradients += (chainer.as_variable(_weight_gradient(self, *self.weight_factors(x.array, gy.array), total)),)
        if 2 in before:
            total = np.zeros(gy.shape[1], gy.dtype) if before[2] is None else before[2].array.copy()
            gradients += (chainer.as_variable(_bias_gradient(gy.array, total)),)
        return gradients

    def weight_factors(self, x: Any, gy: Any) -> tuple[Any, Any]:
        """The array that the windows lie in, then the array of the products; here the input, then the gradient."""
        return x, gy


class Convolution(_Accumulating, _forward.Convolution2DFunction):
    """Chainer's convolution with another way to compute it on the CPU."""

    def forward_cpu(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The convolution of ``x`` (N, C, H, W) with ``W`` (O, C / groups, kh, kw), and ``b`` (O) added."""
        self.retain_inputs((0, 1))
        x, W, *bias = inputs
        windows = _Windows(self, W.shape, self._get_out_size(x.shape, W.shape))
        y = np.empty((len(x), *windows.products), x.dtype)
        kernel = W.reshape(windows.kernels)
        for images in windows.chunks(x):
            np.matmul(kernel, windows.columns(x[images]), out=y[images])
        y = y.reshape(len(x), W.shape[0], *windows.out)
        if bias:
            y += bias[0].reshape(-1, 1, 1)
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> list[Any]:
        """The gradients of the inputs ``indexes``."""
        x, W = self.get_retained_inputs()
        (gy,) = grad_outputs
        gradients = []
        if 0 in indexes:
            options = {"pad": (self.ph, self.pw), "outsize": x.shape[2:], "dilate": (self.dy, self.dx)}
            gradients += Deconvolution((self.sy, self.sx), groups=self.groups, **options).apply((gy, W))
        if 1 in indexes:
            gradients += WeightGradient(self, W.shape, W.dtype, W.layout).apply((x, gy))
        if 2 in indexes:
            gradients.append(F.sum(gy, axis=(0, 2, 3)))
        return gradients


class WeightGradient(_forward.Convolution2DGradW):
    """The gradient of a convolution's weight."""

    def forward_cpu(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The weight's gradient, from ``x`` (N, C, H, W) and the result's gradient (N, O, rows, columns)."""
        self.retain_inputs((0, 1))
        x, gy = inputs
        return (_weight_gradient(self, x, gy, np.zeros(self.W_shape, self.W_dtype)),)


class Deconvolution(_Accumulating, _transposed.Deconvolution2DFunction):
    """Chainer's transposed convolution with another way to compute it on the CPU."""

    def weight_factors(self, x: Any, gy: Any) -> tuple[Any, Any]:
        """The gradient, then the input: the windows lie in the result."""
        return gy, x

    def forward_cpu(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """``x`` (N, C, H, W) spread by ``W`` (C, O / groups, kh, kw), and ``b`` (O) added."""
        self.retain_inputs((0, 1))
        x, W, *bias = inputs
        self._calc_out_size(x.shape, W.shape)
        windows = _Windows(self, W.shape, x.shape[2:])
        y = np.zeros((len(x), W.shape[1] * self.groups, *windows.padded((self.outh, self.outw))), x.dtype)
        kernel = W.reshape(windows.kernels).swapaxes(1, 2)
        products = np.ascontiguousarray(x).reshape(len(x), *windows.products)
        for images in windows.chunks(y):
            windows.add_columns(np.matmul(kernel, products[images]), y[images])
        y = y[:, :, self.ph : self.ph + self.outh, self.pw : self.pw + self.outw]
        if bias:
            y = y + bias[0].reshape(-1, 1, 1)
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> list[Any]:
        """The gradients of the inputs ``indexes``."""
        x, W = self.get_retained_inputs()
        (gy,) = grad_outputs
        self._set_cover_all(x.shape, W.shape)
        gradients = []
        if 0 in indexes:
            options = {"pad": (self.ph, self.pw), "cover_all": self.cover_all, "dilate": (self.dy, self.dx)}
            gradients += Convolution((self.sy, self.sx), groups=self.groups, **options).apply((gy, W))
        if 1 in indexes:
            gradients += WeightGradient(self, W.shape, W.dtype, W.layout).apply((gy, x))
        if 2 in indexes:
            gradients.append(F.sum(gy, axis=(0, 2, 3)))
        return gradients


def _weight_gradient(function: Any, x: np.ndarray, gy: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Add the weight's gradient to ``total``, one image after the other, positions in the blocks of OpenBLAS."""
    windows = _Windows(function, total.shape, gy.shape[2:])
    products = np.ascontiguousarray(gy).reshape(len(x), *windows.products)
    flat, own = total.reshape(windows.kernels), np.empty(windows.kernels, total.dtype)
    blocks = list(_blocks(windows.products[2]))
    for images in windows.chunks(x):
        for columns, product in zip(windows.columns(x[images]), products[images], strict=True):
            for block in blocks:
                flat += np.matmul(product[..., block], columns[..., block].swapaxes(1, 2), out=own)
    return total


def _blocks(length: int) -> Iterator[slice]:
    """The blocks of a sum over ``length`` terms, as OpenBLAS's kernels for Haswell take them.

    For example, 1000 terms are added in blocks of 384, 312 and 304.

    Source: OpenBLAS ``level3.c``, with ``SGEMM_DEFAULT_Q`` and ``SGEMM_DEFAULT_UNROLL_M`` of ``param.h``.
    """
    most, unit, start = 384, 8, 0
    while start < length:
        left = length - start
        size = most if left >= 2 * most else -(-(left // 2) // unit) * unit if left > most else left
        yield slice(start, start + size)
        start += size


def _bias_gradient(gy: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Add the sums of ``gy`` (N, O, rows, columns) over the positions to ``total`` (O), one image after the other."""
    ones = np.ones(count(gy.shape[2:]), gy.dtype)
    for image in np.ascontiguousarray(gy).reshape(*gy.shape[:2], -1):
        total += image.dot(ones)
    return total


class _Windows:
    """The windows of a convolution as matrices, one column of values per window.

    Args:
        function: Has stride, pad, dilation and groups as attributes, with the names of Chainer's functions.
        weight: Shape of the weight; the first axis counts the products per window.
        out: Number of windows, (rows, columns).

    Attributes:
        kernels: Shape of the weight as one matrix per group, (groups, products, values of a window).
        products: Shape of the products with the columns of one image, (groups, products, windows).
    """

    def __init__(self, function: Any, weight: Shape, out: Shape) -> None:
        groups, self.kernel, self.out = function.groups, weight[2:], tuple(out)
        self.stride, self.pad = (function.sy, function.sx), (function.ph, function.pw)
        self.dilation = (function.dy, function.dx)
        self.kernels = (groups, weight[0] // groups, count(weight[1:]))
        self.products = (groups, weight[0] // groups, count(out))

    def chunks(self, images: Any) -> Iterator[slice]:
        """Slices of the batch, of as many images as have columns that fit in the cache."""
        size = self.kernels[0] * self.kernels[2] * self.products[2] * images.dtype.itemsize
        step = max(1, _COLUMNS // max(1, size))
        for start in range(0, len(images), step):
            yield slice(start, start + step)

    def columns(self, x: Any) -> Any:
        """The values in each window, (n, groups, values, windows); a view where windows are single pixels."""
        step_h, step_w = x.strides[2:]
        if any(self.pad) or self._reach(x.shape[2:]) != x.shape[2:]:
            x = self._bordered(x)
            step_h, step_w = x.strides[2:]
        steps = (step_h * self.dilation[0], step_w * self.dilation[1], step_h * self.stride[0], step_w * self.stride[1])
        view = np.lib.stride_tricks.as_strided(
            x, (*x.shape[:2], *self.kernel, *self.out), (*x.strides[:2], *steps), writeable=False
        )
        return np.ascontiguousarray(view).reshape(len(x), self.kernels[0], self.kernels[2], self.products[2])

    def _reach(self, space: Shape) -> Shape:
        """The extents that the windows cover, and no less than ``space``."""
        need = (
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(self.out, self.stride, self.kernel, self.dilation, strict=True)
        )
        return tuple(map(max, need, space))

    def padded(self, space: Shape) -> Shape:
        """The extents of an image with its padding, as far as the windows cover."""
        return self._reach(tuple(n + 2 * p for n, p in zip(space, self.pad, strict=True)))

    def _bordered(self, x: Any) -> Any:
        """``x`` (n, C, H, W) with its padding of zeros."""
        bordered = np.zeros((*x.shape[:2], *self.padded(x.shape[2:])), x.dtype)
        bordered[:, :, self.pad[0] : self.pad[0] + x.shape[2], self.pad[1] : self.pad[1] + x.shape[3]] = x
        return bordered

    def add_columns(self, columns: Any, image: Any) -> None:
        """Add the values in each window (n, groups, values, windows) to images with padding."""
        columns = columns.reshape(len(image), image.shape[1], *self.kernel, *self.out)
        for place in itertools.product(*map(range, self.kernel)):
            rows, cols = (
                slice(k * d, k * d + (o - 1) * s + 1, s)
                for k, d, o, s in zip(place, self.dilation, self.out, self.stride, strict=True)
            )
            image[:, :, rows, cols] += columns[(slice(None), slice(None), *place)]
