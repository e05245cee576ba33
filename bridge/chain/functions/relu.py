"""ReLU: on the CPU in parts that fit in the cache, where Caffe's bits are not asked for; elsewhere Chainer's own.

Source: relu_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_memory import take
from bridge.chain.functions.helper_node import Node
from bridge.chain.functions.helper_parts import PART_BYTES, channels_first, channels_last, each, is_fast, spans

F = chainer.functions


def relu(x: Any) -> Any:
    """``max(0, x)``.

    Args:
        x: Variable of any shape.

    Returns:
        Variable of the shape and dtype of ``x``.

    Source: relu_layer.cpp; ``chainer.functions.relu``.
    """
    return FastRelu().apply((x,))[0] if is_fast(x) else F.relu(x)


def cut_gradient(y: np.ndarray, g: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The gradient ``g`` where ``y`` is above 0, else 0, in ``out``; C-contiguous arrays of one shape."""
    flat, given, kept = (array.reshape(-1) for array in (y, g, out))

    def work(span: slice) -> None:
        np.multiply(given[span], flat[span] > 0, out=kept[span])

    each(work, spans(g.size, PART_BYTES // 4))
    return out


class FastRelu(Node):
    """ReLU of images (N, C, H, W), channels-last in memory."""

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The cut values."""
        x = channels_last(inputs[0])
        self.y = take(x.shape)
        flat, own = x.reshape(-1), self.y.reshape(-1)
        zeros = np.zeros(PART_BYTES // 4, np.float32)  # NumPy compares arrays faster than an array and a number

        def work(span: slice) -> None:
            np.maximum(flat[span], zeros[: span.stop - span.start], out=own[span])

        each(work, spans(x.size, len(zeros)))
        return (channels_first(self.y),)

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradient of the input, added to the one that it already has."""
        if chainer.config.enable_backprop:  # for a second derivative
            result: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return result
        g = channels_last(grad_outputs[0].array)
        found = channels_first(cut_gradient(self.y, g, take(g.shape)))
        (before,) = grad_inputs
        return (chainer.as_variable(found if before is None else found + before.array),)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input, as a function of Chainer's, which has derivatives."""
        return grad_outputs[0] * (channels_first(self.y) > 0).astype(np.float32)
