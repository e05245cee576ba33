"""Sigmoid: on the CPU with Caffe's bits, elsewhere Chainer's own.

Source: sigmoid_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer

_sigmoid: Any = chainer.functions.activation.sigmoid


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``.

    Args:
        x: Variable of any shape.

    Returns:
        Variable of the shape and dtype of ``x``.

    Source: sigmoid_layer.cpp; ``chainer.functions.sigmoid``.
    """
    return Sigmoid().apply((x,))[0]


class Sigmoid(_sigmoid.Sigmoid):
    """Chainer's function, computed in float64 and rounded once, as in Caffe. Exporters know it by the class's name."""

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
