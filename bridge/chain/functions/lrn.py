"""LRN across channels: on the CPU in the order in which Caffe adds, elsewhere Chainer's own.

Caffe carries the sum of squares from channel to channel: one fused multiply-add adds the square
that enters the window, another one takes off the square that leaves it. This module keeps that order,
computes in float64 between roundings, and rounds the power once. So the results have the bits of
Caffe on a processor with that instruction, and two values that nearly tie in the next pooling have the
same maximum. (Where sums are far from ``k``, the power of Caffe's C library may differ in the last place.)

Source: lrn_layer.cpp ``CrossChannelForward_cpu``, ``CrossChannelBackward_cpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous, has_kernel
from bridge.chain.functions.helper_memory import take
from bridge.chain.functions.helper_node import Node
from bridge.chain.functions.helper_parts import PART_BYTES, channels_first, channels_last, each, is_fast, spans
from bridge.schema import count

_chainers: Any = chainer.functions.normalization.local_response_normalization
_forward = Kernel(
    "lrn",
    """extern "C" __global__ void lrn(
    const float* x, float* y, float* scale, int n, int channels, int inner, int half,
    float k, float alpha, float beta) {
    EACH(i, n) {
        int c = i / inner % channels;
        float sum = 0;
        for (int j = MOST(c - half, 0); j <= LEAST(c + half, channels - 1); ++j) {
            float value = x[i + (long long)(j - c) * inner];
            sum += value * value;
        }
        scale[i] = k + alpha * sum;
        y[i] = x[i] * powf(scale[i], -beta);
    }
}""",
)
_backward = Kernel(
    "lrn_gradient",
    """extern "C" __global__ void lrn_gradient(
    const float* x, const float* y, const float* scale, const float* gy, float* gx,
    int n, int channels, int inner, int half, float alpha, float beta) {
    EACH(i, n) {
        int c = i / inner % channels;
        float sum = 0;
        for (int j = MOST(c - half, 0); j <= LEAST(c + half, channels - 1); ++j) {
            long long at = i + (long long)(j - c) * inner;
            sum += gy[at] * y[at] / scale[at];
        }
        gx[i] = gy[i] * powf(scale[i], -beta) - 2 * alpha * beta * x[i] * sum;
    }
}""",
)
_CHUNK = 1 << 18
"""Bytes of images to compute at a time, so that they stay in the cache; at least one image."""


def local_response_normalization(x: Any, n: int = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75) -> Any:
    """``x (k + alpha * sum x^2)^-beta``, the sum over ``n`` channels around each.

    Args:
        x: Variable (N, C, ...).
        n: Number of channels in a sum, odd.
        k: Added to the sum.
        alpha: Factor of the sum; Caffe's ``alpha`` divided by ``n``.
        beta: The exponent.

    Returns:
        Variable of the shape and dtype of ``x``.

    Source: lrn_layer.cpp; ``chainer.functions.local_response_normalization``.
    """
    if is_fast(x) and n < 2 * x.shape[1]:
        return FastNormalization(n, k, alpha, beta).apply((x,))[0]
    return LocalResponseNormalization(n, k, alpha, beta).apply((x,))[0]


class LocalResponseNormalization(_chainers.LocalResponseNormalization):
    """Chainer's normalization with other ways to compute it on the CPU and, in float32, on a GPU."""

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The normalized values."""
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        (x,) = inputs
        y, self.scale, self.power = (np.empty_like(x) for _ in range(3))
        for part in _chunks(x):
            terms = np.square(x[part]).astype(np.float64)
            terms *= _alpha(self, x) / x.dtype.type(self.n)  # exact, as the factor of a fused multiply-add is
            _running_sums(terms, self.n // 2, self.k, out=self.scale[part], enter_first=True)
            _power(self.scale[part], self.beta, out=self.power[part])
            np.multiply(x[part], self.power[part], out=y[part])
        return (y,)

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        """The normalized values, on a GPU."""
        if not has_kernel(inputs[0]):
            values: tuple[Any] = super().forward_gpu(inputs)
            return values
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        x, xp = contiguous(inputs[0])
        y, self.scale = xp.empty_like(x), xp.empty_like(x)
        extents = (x.size, x.shape[1], count(x.shape[2:]), self.n // 2)
        _forward(xp, x.size, x, y, self.scale, *extents, float(self.k), float(self.alpha), float(self.beta))
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input."""
        if grad_outputs[0].xp is not np and not has_kernel(grad_outputs[0].array):
            return super().backward(indexes, grad_outputs)
        return _Gradient(self).apply((*self.get_retained_inputs(), *self.get_retained_outputs(), *grad_outputs))


class FastNormalization(Node):
    """The normalization without Caffe's bits: all in float32, channels-last."""

    def __init__(self, n: int, k: float, alpha: float, beta: float) -> None:
        self.n, self.k, self.alpha, self.beta = n, k, alpha, beta

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The normalized values."""
        self.retain_inputs((0,))
        x = channels_last(inputs[0])
        rows, y = x.reshape(-1, x.shape[3]), take(x.shape)
        self.scale, own = take(rows.shape), y.reshape(rows.shape)

        def work(span: slice) -> None:
            scale = self.scale[span]
            _window_sums(np.square(rows[span]), self.n // 2, out=scale)
            scale *= np.float32(self.alpha)
            scale += np.float32(self.k)
            np.multiply(rows[span], _fast_power(scale, self.beta), out=own[span])

        each(work, self._spans(rows))
        return (channels_first(y),)

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradient of the input, added to the one that it already has."""
        if chainer.config.enable_backprop:  # for a second derivative
            result: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return result
        x, gy = channels_last(self.get_retained_inputs()[0].array), channels_last(grad_outputs[0].array)
        rows, given = x.reshape(-1, x.shape[3]), gy.reshape(-1, x.shape[3])
        gx = take(rows.shape)
        factor = np.float32(2 * self.alpha * self.beta)

        def work(span: slice) -> None:
            own, scale = gx[span], self.scale[span]
            np.multiply(given[span], _fast_power(scale, self.beta), out=own)
            ratio = own * rows[span]
            ratio /= scale
            sums = _window_sums(ratio, self.n // 2, out=np.empty_like(ratio))
            sums *= rows[span]
            sums *= factor
            own -= sums

        each(work, self._spans(rows))
        found = channels_first(gx.reshape(x.shape))
        (before,) = grad_inputs
        return (chainer.as_variable(found if before is None else found + before.array),)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input, as functions of Chainer's, which have derivatives."""
        x = self.inputs[0].get_variable()
        y = LocalResponseNormalization(self.n, self.k, self.alpha, self.beta).apply((x,))[0]
        return chainer.grad([y], [x], list(grad_outputs), enable_double_backprop=True)

    @staticmethod
    def _spans(rows: np.ndarray) -> Iterator[slice]:
        return spans(len(rows), PART_BYTES // (4 * rows.shape[1]))


def _window_sums(terms: np.ndarray, half: int, out: np.ndarray) -> np.ndarray:
    """For each channel, the sum of (rows, C) over ``half`` channels before it and ``half`` after it."""
    out[...] = terms
    for far in range(1, half + 1):
        out[:, far:] += terms[:, :-far]
        out[:, :-far] += terms[:, far:]
    return out


def _fast_power(scale: np.ndarray, beta: float) -> np.ndarray:
    """``scale ** -beta`` in float32."""
    if beta != 0.75:
        power: np.ndarray = np.power(scale, np.float32(-beta))
        return power
    root: np.ndarray = np.sqrt(scale)
    root *= np.sqrt(root)
    np.divide(1, root, out=root)
    return root


class _Gradient(chainer.FunctionNode):
    def __init__(self, function: LocalResponseNormalization) -> None:
        self.function = function

    def forward_cpu(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray]:
        own = self.function
        x, y, gy = inputs
        gx = gy * own.power
        factor = x.dtype.type(2 * float(_alpha(own, x)) * own.beta / own.n)
        for part in _chunks(x):
            ratio = gy[part] * y[part]
            ratio /= own.scale[part]
            sums = _running_sums(ratio, own.n // 2, 0, out=np.empty_like(ratio), enter_first=False)
            sums *= x[part]
            taken = sums.astype(np.float64)
            taken *= factor
            np.subtract(gx[part], taken, out=gx[part], casting="same_kind")  # fused, too
        return (gx,)

    def forward_gpu(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        (x, xp), (y, _), (gy, _) = map(contiguous, inputs)
        own, gx = self.function, xp.empty(x.shape, x.dtype)
        extents = (x.size, x.shape[1], count(x.shape[2:]), own.n // 2)
        _backward(xp, x.size, x, y, own.scale, gy, gx, *extents, float(own.alpha), float(own.beta))
        return (gx,)


def _alpha(function: LocalResponseNormalization, x: np.ndarray) -> Any:
    """Caffe's ``alpha``, which Chainer has divided by the number of channels, as a number of x's dtype."""
    return x.dtype.type(function.alpha * function.n)


def _chunks(images: np.ndarray) -> Iterator[slice]:
    """Slices of the batch, of as many images as fit in the cache."""
    step = max(1, _CHUNK * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), step):
        yield slice(start, start + step)


def _running_sums(terms: np.ndarray, half: int, start: float, out: np.ndarray, *, enter_first: bool) -> np.ndarray:
    """For each channel, ``start`` plus the terms of the channel, of ``half`` channels before it and ``half`` after it.

    Each sum is computed from the previous one: the term that enters is added, the term that leaves is subtracted,
    and each step is rounded to the dtype of ``out``. In the forward pass, Caffe adds first; in the backward pass
    it subtracts first.

    Args:
        terms: (N, C, ...) float64.
        half: Number of channels on each side.
        start: Added to every sum.
        out: (N, C, ...), receives the sums.
        enter_first: Whether to add before subtracting.
    """
    terms, total = terms.swapaxes(0, 1), out.swapaxes(0, 1)
    wide = np.empty(terms.shape[1:], terms.dtype)

    def carry(change: np.ufunc, channel: int, term: np.ndarray) -> None:
        wide[...] = total[channel]
        change(wide, term, out=wide)
        total[channel] = wide

    total[0] = start
    for term in terms[: half + 1]:
        carry(np.add, 0, term)
    for channel in range(1, len(terms)):
        total[channel] = total[channel - 1]
        changes = ((np.add, channel + half), (np.subtract, channel - half - 1))
        for change, place in changes if enter_first else changes[::-1]:
            if 0 <= place < len(terms):
                carry(change, channel, terms[place])
    return out


def _power(scale: np.ndarray, beta: float, out: np.ndarray) -> None:
    """``scale ** -beta``, rounded once; two square roots are several times faster than ``pow``."""
    wide = scale.astype(np.float64)
    if beta == 0.75:
        np.sqrt(wide, out=wide)
        wide *= np.sqrt(wide)
        np.divide(1, wide, out=out, casting="same_kind")
    else:
        np.power(wide, -beta, out=out, casting="same_kind")
