"""Eltwise: a sum of images, with a cut at 0 behind it, in parts that fit in the cache.

Caffe's bits are kept, but the sum is one node of the graph.

Source: eltwise_layer.cpp.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_memory import take
from bridge.chain.functions.helper_node import Node
from bridge.chain.functions.helper_parts import PART_BYTES, channels_first, channels_last, each, is_fast, spans
from bridge.chain.functions.helper_tail import NO_TAIL, Tail
from bridge.chain.functions.relu import cut_gradient, relu


def caffe_eltwise_sum(terms: Sequence[Any], tail: Tail | None = None) -> Any:
    """The sum of variables of one shape, in their order.

    Args:
        terms: At least one.
        tail: What follows and is computed with it: no more than a cut at 0.

    Returns:
        Variable of their shape and dtype.

    Source: eltwise_layer.cpp.
    """
    tail = NO_TAIL if tail is None else tail
    if len(terms) > 1 and all(is_fast(term, *terms) for term in terms):
        return FastSum(tail.positive).apply(tuple(terms))[0]
    total = functools.reduce(operator.add, terms)
    return relu(total) if tail.positive else total


class FastSum(Node):
    """A sum of images (N, C, H, W), channels-last in memory.

    Args:
        positive: Whether negative sums become 0.
    """

    def __init__(self, positive: bool) -> None:
        self.positive = positive
        self.y: np.ndarray | None = None

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The sums."""
        images = [channels_last(x) for x in inputs]
        y = take(images[0].shape)
        first, second, *others = (array.reshape(-1) for array in images)
        own, zeros = y.reshape(-1), np.zeros(PART_BYTES // 4, np.float32)

        def work(span: slice) -> None:
            np.add(first[span], second[span], out=own[span])
            for other in others:
                np.add(own[span], other[span], out=own[span])
            if self.positive:
                np.maximum(own[span], zeros[: span.stop - span.start], out=own[span])

        each(work, spans(y.size, len(zeros)))
        if self.positive:
            self.y = y
        return (channels_first(y),)

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradients of the inputs ``indexes``, added to the gradients that they already have."""
        if chainer.config.enable_backprop:  # for a second derivative
            result: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return result
        g = grad_outputs[0].array
        if self.y is not None:
            g = channels_last(g)
            g = channels_first(cut_gradient(self.y, g, take(g.shape)))
        return tuple([chainer.as_variable(g if before is None else g + before.array) for before in grad_inputs])

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradients of the inputs, as functions of Chainer's, which have derivatives."""
        g = grad_outputs[0]
        if self.y is not None:
            g = g * (channels_first(self.y) > 0).astype(np.float32)
        return (g,) * len(indexes)
