"""Activations with the bits that Caffe's have, on the CPU; Chainer's own elsewhere.

Source: sigmoid_layer.cpp, elu_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.libm import expf

_elu: Any = chainer.functions.activation.elu
_sigmoid: Any = chainer.functions.activation.sigmoid


def elu(x: Any, alpha: float) -> Any:
    """``x`` where it is positive, ``alpha (exp(x) - 1)`` elsewhere, of a variable of any shape, in its dtype.

    Source: elu_layer.cpp; ``chainer.functions.elu``.
    """
    return ELU(alpha).apply((x,))[0]


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))`` of a variable of any shape, in its dtype.

    Source: sigmoid_layer.cpp; ``chainer.functions.sigmoid``.
    """
    return Sigmoid().apply((x,))[0]


class ELU(_elu.ELU):
    """Chainer's function, by its name (exporters know it by that), with the exponential of Caffe's C library."""

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The activations."""
        (x,) = inputs
        if x.dtype != np.float32:
            made: tuple[np.ndarray] = super().forward_cpu(inputs)
            return made
        if self.alpha < 0:
            self.retain_inputs((0,))
        self.retain_outputs((0,))
        y = expf(np.minimum(x, 0))
        y -= 1
        y *= np.float32(self.alpha)
        y += np.maximum(x, 0)
        return (y,)


class Sigmoid(_sigmoid.Sigmoid):
    """Chainer's function, by its name, computed in float64 and rounded once, as in Caffe."""

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The activations."""
        self.retain_outputs((0,))
        self._use_cudnn = False
        y = inputs[0].astype(np.float64)
        y *= 0.5
        np.tanh(y, out=y)
        y *= 0.5
        y += 0.5
        return (y.astype(inputs[0].dtype),)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input."""
        if grad_outputs[0].xp is not np:
            return super().backward(indexes, grad_outputs)
        return _SigmoidGradient((None,)).apply((*self.get_retained_outputs(), *grad_outputs))


class _SigmoidGradient(_sigmoid.SigmoidGrad):
    def forward_cpu(self, inputs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray]:
        self.retain_inputs((0, 1))
        y, gy = inputs
        rest = 1 - y.astype(np.float64)
        return (np.asarray(gy * y * rest, y.dtype),)
