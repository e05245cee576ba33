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
_MOST_COLUMNS = 1 << 22
"""An image of more bytes of columns is taken in parts: they are many times as large as the image."""
_UNROLLED = 64
"""A matrix product computes so many columns in one way, and what remains in another: parts have a multiple of it."""
_SMALL = 1 << 22
"""A matrix product of fewer multiplications may be computed in another way than a larger one."""


def caffe_convolution(
    x: Any, W: Any, b: Any, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int,
    tail: Tail | None = None,
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
    tail = NO_TAIL if tail is None else tail
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
        for images, groups, some in windows.parts(x, _UNROLLED):
            columns = windows.columns(x[images, windows.channels(x, groups)], some)
            np.matmul(kernel[groups], columns, out=y[images, groups, :, some])
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
        y = np.zeros((len(x), W.shape[1] * self.groups, self.outh, self.outw), x.dtype)
        kernel = W.reshape(windows.kernels).swapaxes(1, 2)
        products = np.ascontiguousarray(x).reshape(len(x), *windows.products)
        # the last rows first: each value's terms are then added in one order, whatever the parts are
        for images, groups, some in reversed(list(windows.parts(x, max(1, windows.out[1])))):
            first = some.start // _UNROLLED * _UNROLLED
            wide = slice(first, -(-some.stop // _UNROLLED) * _UNROLLED)
            columns = np.matmul(kernel[groups], products[images, groups, :, wide])
            columns = columns[..., some.start - first : some.stop - first]
            windows.add_columns(columns, some, y[images, windows.channels(y, groups)])
        if bias:
            y += bias[0].reshape(-1, 1, 1)
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
        for columns, product in zip(windows.columns(x[images], windows.all), products[images], strict=True):
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
        all: All windows of an image.
    """

    def __init__(self, function: Any, weight: Shape, out: Shape) -> None:
        groups, self.kernel, self.out = function.groups, weight[2:], tuple(out)
        self.stride, self.pad = (function.sy, function.sx), (function.ph, function.pw)
        self.dilation = (function.dy, function.dx)
        self.kernels = (groups, weight[0] // groups, count(weight[1:]))
        self.products = (groups, weight[0] // groups, count(out))
        self.all = slice(0, count(out))

    def chunks(self, images: Any) -> Iterator[slice]:
        """Slices of the batch, of as many images as have columns that fit in the cache."""
        step = max(1, _COLUMNS // max(1, self._nbytes(images)))
        for start in range(0, len(images), step):
            yield slice(start, start + step)

    def channels(self, images: Any, groups: slice) -> slice:
        """The channels of some groups."""
        each = images.shape[1] // self.kernels[0]
        return slice(groups.start * each, groups.stop * each)

    def parts(self, images: Any, unit: int) -> Iterator[tuple[slice, slice, slice]]:
        """Parts that have few columns: slices of the batch, of the groups, and of the windows.

        An image's results have the same bits, whatever its parts are: groups are products of their own, and a
        product of some windows is computed as a part of the whole is.

        Args:
            images: The batch.
            unit: A part has a multiple of so many windows.
        """
        size, (groups, _, windows) = self._nbytes(images), self.products
        pixels = self.kernel == self.stride == (1, 1) and not any(self.pad)
        step, pieces = groups, 1
        if size > _MOST_COLUMNS and not pixels:
            step = max(1, _MOST_COLUMNS * groups // size)
            pieces = min(-(-size // (groups * _MOST_COLUMNS)), count(self.kernels[1:]) * windows // _SMALL)
        blocks = list(_cut(windows, max(1, pieces), unit))
        for chunk in self.chunks(images):
            for start in range(0, groups, step):
                yield from ((chunk, slice(start, min(start + step, groups)), block) for block in blocks)

    def _nbytes(self, images: Any) -> int:
        """Bytes of one image's columns."""
        return int(self.kernels[0] * self.kernels[2] * self.products[2] * images.dtype.itemsize)

    def columns(self, x: Any, some: slice) -> Any:
        """The values in each of some windows, (n, groups, values, windows); a view where windows are single pixels."""
        rows = range(some.start // self.out[1], -(-some.stop // self.out[1]))
        x = self._read_by(x, rows)
        step_h, step_w = x.strides[2:]
        steps = (step_h * self.dilation[0], step_w * self.dilation[1], step_h * self.stride[0], step_w * self.stride[1])
        view = np.lib.stride_tricks.as_strided(
            x, (*x.shape[:2], *self.kernel, len(rows), self.out[1]), (*x.strides[:2], *steps), writeable=False
        )
        columns = np.ascontiguousarray(view).reshape(len(x), -1, self.kernels[2], len(rows) * self.out[1])
        first = rows.start * self.out[1]
        return columns[..., some.start - first : some.stop - first]

    def _read_by(self, x: Any, rows: range) -> Any:
        """What some rows of windows read of ``x`` (n, C, H, W), with its padding of zeros."""
        height, width = x.shape[2:]
        top, left = rows.start * self.stride[0] - self.pad[0], self.pad[1]
        below = (rows.stop - 1) * self.stride[0] - self.pad[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        across = (self.out[1] - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        if top >= 0 and below <= height and not left and across <= width:
            return x[:, :, top:below]
        bordered = np.zeros((*x.shape[:2], below - top, max(across, width + 2 * left)), x.dtype)
        first = max(top, 0)
        last = max(first, min(below, height))
        bordered[:, :, first - top : last - top, left : left + width] = x[:, :, first:last]
        return bordered

    def add_columns(self, columns: Any, some: slice, image: Any) -> None:
        """Add the values in each window of some whole rows (n, groups, values, windows) to images (n, C, H, W)."""
        rows = range(some.start // self.out[1], some.stop // self.out[1])
        columns = columns.reshape(len(image), image.shape[1], *self.kernel, len(rows), self.out[1])
        down, across = (
            [
                _covered(
                    windows, self.stride[axis], place * self.dilation[axis] - self.pad[axis], image.shape[2 + axis]
                )
                for place in range(self.kernel[axis])
            ]
            for axis, windows in enumerate((rows, range(self.out[1])))
        )
        for place in itertools.product(*map(range, self.kernel)):
            (from_rows, to_rows), (from_columns, to_columns) = down[place[0]], across[place[1]]
            image[:, :, to_rows, to_columns] += columns[:, :, place[0], place[1], from_rows, from_columns]


def _cut(length: int, pieces: int, unit: int) -> Iterator[slice]:
    """About so many equal slices of a length, each a multiple of ``unit`` but for the last.

    For example, 1000 in 3 pieces of multiples of 64 is cut at 384 and 768, in 2 pieces at 512.
    """
    step = max(1, -(-length // (pieces * unit))) * unit
    cuts = list(range(0, length, step))[: max(1, -(-(length - step // 2) // step))]  # no short rest
    yield from (slice(*ends) for ends in itertools.pairwise([*cuts, length]))


def _covered(windows: range, stride: int, shift: int, extent: int) -> tuple[slice, slice]:
    """Which of some windows have a place of the kernel inside an image, and which rows or columns it covers there.

    For example, windows 0 to 3 at stride 2, of which the place is 1 before the window's, cover rows -1, 1, 3 and 5;
    in an image of 5 rows these are windows 1 and 2 of them, and rows 1 and 3.
    """
    first = max(windows.start, -(shift // stride))
    stop = max(first, min(windows.stop, (extent - 1 - shift) // stride + 1))
    start = first * stride + shift
    return slice(first - windows.start, stop - windows.start), slice(start, start + (stop - first) * stride, stride)
