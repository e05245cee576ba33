"""Helper: a convolution as a node of Chainer's graph, computed the fast way with what follows it per channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_memory import take
from bridge.chain.functions.helper_node import Node
from bridge.chain.functions.helper_parts import channels_first, channels_last, scratch
from bridge.chain.functions.helper_products import WindowProducts
from bridge.chain.functions.relu import cut_gradient
from bridge.schema import Shape

F = chainer.functions
_LEAST = 16
"""Channels of a group with which a product for each group is fast."""


def is_covered(x: Any, W: Any, groups: int) -> bool:
    """Whether the fast way knows a convolution with that many groups."""
    if type(W.array) is not np.ndarray or W.dtype != np.float32 or W.ndim != 4:
        return False
    one_each = groups == x.shape[1] == W.shape[0]
    return groups == 1 or one_each or min(W.shape[0] // groups, W.shape[1]) >= _LEAST


class FastConvolution(Node):
    """A convolution, its bias, and a cut at 0 where one follows.

    Args:
        options: ``stride``, ``pad`` and ``dilate`` per axis, and ``groups``, as Chainer's functions have them.
        positive: Whether negative results become 0.
        trained: Whether the weight's gradient will be asked for; without it the input is not kept.
        factor: What results are multiplied with before the bias is added, (O); ``None`` is 1.
    """

    def __init__(self, options: dict[str, Any], positive: bool, trained: bool, factor: Any = None) -> None:
        self.options, self.positive, self.trained = options, positive, trained
        self.factor = None if factor is None else factor.reshape(-1, 1, 1, 1)
        self.y: Any = None

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The results (N, O, rows, columns), channels-last in memory."""
        self.retain_inputs((0, 1) if self.trained else (1,))
        x, W, *b = inputs
        W = self._multiplied(W)
        groups: int = self.options["groups"]
        self.space, self.number = x.shape[2:], 1 if groups == x.shape[1] else groups
        each = [
            self._products(W.shape).forward(images, kernel, bias, self.positive)
            for images, kernel, bias in zip(
                self._split(channels_last(x)), self._kernels(W), self._biases(b), strict=True
            )
        ]
        y = channels_first(each[0] if len(each) == 1 else np.concatenate(each, axis=3))
        if self.positive:
            self.y = y
        return (y,)

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradients of the inputs ``indexes``, added to the gradients that they already have."""
        if chainer.config.enable_backprop:  # for a second derivative
            result: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return result
        g = channels_last(grad_outputs[0].array)
        if self.positive:
            g = cut_gradient(channels_last(self.y), g, scratch("cut", g.shape))
        gradients = []
        for index, before in zip(indexes, grad_inputs, strict=True):
            found = self._gradient(index, g)
            if before is not None:
                found += before.array
            gradients.append(chainer.as_variable(found))
        return tuple(gradients)

    def _gradient(self, index: int, g: np.ndarray) -> np.ndarray:
        if index == 2:
            images = g.reshape(len(g), -1, g.shape[3])
            sums: np.ndarray = np.matmul(np.ones(images.shape[1], np.float32), images).sum(axis=0)
            return sums
        *x, W = (variable.array for variable in self.get_retained_inputs())
        products, parts = self._products(W.shape), self._split(g)
        if index == 0:
            W = self._multiplied(W)
            each = [
                products.backward(own, kernel, self.space) for own, kernel in zip(parts, self._kernels(W), strict=True)
            ]
            return channels_first(each[0] if len(each) == 1 else np.concatenate(each, axis=3))
        shape = (W.shape[0] // len(parts), *W.shape[1:])
        pairs = zip(self._split(channels_last(x[0])), parts, strict=True)
        each = [products.weight_gradient(images, own, shape) for images, own in pairs]
        gradient = each[0] if len(each) == 1 else np.concatenate(each)
        return gradient if self.factor is None else np.multiply(gradient, self.factor, out=gradient)

    def _multiplied(self, W: np.ndarray) -> np.ndarray:
        return W if self.factor is None else np.multiply(W, self.factor, out=take(W.shape))

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> tuple[Any, ...]:
        """The gradients of the inputs ``indexes``, as functions of Chainer's, which have derivatives."""
        from bridge.chain.functions.convolution import Convolution

        inputs = [variable.get_variable() for variable in self.inputs]
        x, W, *b = inputs
        W = W if self.factor is None else W * np.broadcast_to(self.factor, W.shape)
        y = Convolution(**self.options).apply((x, W, *b))[0]
        if self.positive:
            y = F.relu(y)
        found = chainer.grad([y], [inputs[i] for i in indexes], list(grad_outputs), enable_double_backprop=True)
        return tuple(found)

    # -- groups

    def _products(self, weight: Shape) -> WindowProducts:
        groups = self.options["groups"] if self.number == 1 else 1
        stride, pad, dilation = (tuple(self.options[name]) for name in ("stride", "pad", "dilate"))
        return WindowProducts(tuple(weight[2:]), stride, pad, dilation, groups)

    def _split(self, images: np.ndarray) -> list[np.ndarray]:
        return [images] if self.number == 1 else np.split(images, self.number, axis=3)

    def _kernels(self, W: np.ndarray) -> list[np.ndarray]:
        return [W] if self.number == 1 else np.split(W, self.number)

    def _biases(self, b: list[np.ndarray]) -> list[Any]:
        return np.split(b[0], self.number) if b else [None] * self.number
