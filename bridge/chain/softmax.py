"""The loss of a softmax as one function: the steps of a composition would cost more than what they compute.

Source: softmax_layer.cpp, softmax_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.losses import by_place, counted_labels
from bridge.chain.node import Node

if TYPE_CHECKING:
    from bridge.layers.softmax_with_loss import SoftmaxWithLoss

F = chainer.functions
_SMALLEST = float(np.finfo(np.float32).tiny)


def softmax_loss(x: Any, labels: Any, layer: SoftmaxWithLoss) -> Any:
    """``-log softmax(x)[label]``, the softmax at least the smallest normal float32, over the places that count."""
    places, outer, inner = by_place(x, layer.axis)
    wanted, valid = counted_labels(labels, places.shape[1], layer, layer.ignore_label)
    counted = None if valid == wanted.size else wanted >= 0
    return _SoftmaxLoss(wanted, counted, layer.divisor(outer, inner, valid)).apply((places,))[0]


class _SoftmaxLoss(Node):
    """The sum over places (N, classes), divided; as float32 where they are float16, whose range it may exceed."""

    def __init__(self, wanted: Any, counted: Any, divisor: int) -> None:
        self.wanted, self.counted, self.divisor = wanted, counted, divisor

    def forward(self, inputs: tuple[Any]) -> tuple[Any]:
        """The loss, of no axes."""
        self.retain_inputs((0,))
        (x,) = inputs
        xp = chainer.backend.get_array_module(x)
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        exponentials = xp.exp(wide - wide.max(axis=1, keepdims=True))
        exponentials /= exponentials.sum(axis=1, keepdims=True)
        self.softmax = exponentials
        self.rows = xp.arange(len(x))
        logs = xp.log(xp.maximum(self.softmax[self.rows, self.wanted], _SMALLEST))
        if self.counted is not None:
            logs *= self.counted
        return (xp.asarray(-logs.sum() / self.divisor, dtype=wide.dtype),)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> tuple[Any]:
        """The gradient of the places, which does not see the softmax's bound, as in Caffe."""
        (x,), (gy,) = self.get_retained_inputs(), grad_outputs
        if chainer.config.enable_backprop:  # for a second derivative
            right = gy.xp.zeros_like(self.softmax)
            right[self.rows, self.wanted] = 1
            each = F.softmax(F.cast(x, self.softmax.dtype)) - right
            kept = each if self.counted is None else each * self.counted[:, None].astype(each.dtype)
            return (F.cast(kept * F.broadcast_to(gy / self.divisor, kept.shape), x.dtype),)
        gx = self.softmax.copy()
        gx[self.rows, self.wanted] -= 1
        if self.counted is not None:
            gx *= self.counted[:, None]
        gx *= gy.array / self.divisor
        return (chainer.as_variable(gx.astype(x.dtype, copy=False)),)
