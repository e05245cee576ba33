"""Local response normalisation across channels: an image at a time on the CPU, Chainer's own elsewhere.

The work is bound by memory: an image's few arrays stay in the cache, a batch's do not. And
two square roots give the usual power of -3/4 several times faster than ``pow``.

Source: lrn_layer.cpp ``CrossChannelForward_cpu``, ``CrossChannelBackward_cpu``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer

_chainers: Any = chainer.functions.normalization.local_response_normalization


def local_response_normalization(x: Any, n: int, k: float, alpha: float, beta: float) -> Any:
    """``x (k + alpha * sum x^2)^-beta``, the sum over ``n`` channels, of a variable (N, C, ...)."""
    return LocalResponseNormalization(n, k, alpha, beta).apply((x,))[0]


class LocalResponseNormalization(_chainers.LocalResponseNormalization):
    """Chainer's normalisation with another way to compute it on the CPU."""

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The normalised values."""
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        (x,) = inputs
        y = np.empty_like(x)
        for image, made in zip(x, y, strict=True):
            np.multiply(image, _power(self._scale(image), self.beta), out=made)
        return (y,)

    def _scale(self, image: np.ndarray) -> np.ndarray:
        """``k + alpha * sum x^2`` of an image (C, ...)."""
        total = _channel_sums(np.square(image), self.n // 2)
        total *= total.dtype.type(self.alpha)
        total += total.dtype.type(self.k)
        return total

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input."""
        if grad_outputs[0].xp is not np:
            return super().backward(indexes, grad_outputs)
        return _Gradient(self).apply((*self.get_retained_inputs(), *self.get_retained_outputs(), *grad_outputs))


class _Gradient(chainer.FunctionNode):
    def __init__(self, function: LocalResponseNormalization) -> None:
        self.function = function

    def forward_cpu(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray]:
        own = self.function
        gx = np.empty_like(inputs[0])
        factor = gx.dtype.type(2 * own.alpha * own.beta)
        for image, y, grad, made in zip(*inputs, gx, strict=True):
            scale = own._scale(image)
            sums = _channel_sums(y * grad / scale, own.n // 2)
            np.multiply(grad, _power(scale, own.beta), out=made)
            sums *= image
            sums *= factor
            made -= sums
        return (gx,)


def _channel_sums(values: np.ndarray, half: int) -> np.ndarray:
    """Each channel's sum with the ``half`` before it and the ``half`` behind it, of (C, ...)."""
    total = values.copy()
    for step in range(1, half + 1):
        total[step:] += values[:-step]
        total[:-step] += values[step:]
    return total


def _power(scale: np.ndarray, beta: float) -> np.ndarray:
    """``scale ** -beta``."""
    if beta != 0.75:
        return scale**-beta
    root = np.sqrt(scale)
    root *= np.sqrt(root)
    return np.reciprocal(root, out=root)
