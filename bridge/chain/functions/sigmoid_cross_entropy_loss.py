"""SigmoidCrossEntropyLoss: the cross entropy of independent probabilities.

Source: sigmoid_cross_entropy_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_labels import with_gradient_of

if TYPE_CHECKING:
    from bridge.layers.sigmoid_cross_entropy_loss import SigmoidCrossEntropyLoss

F = chainer.functions


def caffe_sigmoid_cross_entropy_loss(x: Any, targets: Any, layer: SigmoidCrossEntropyLoss) -> Any:
    """The sum of ``log(1 + exp(x)) - t x`` over the places that are not ignored, divided as the layer says.

    Args:
        x: Variable of any shape with a batch axis.
        targets: Variable t of as many values, 0 to 1, or ``ignore_label``.
        layer: The layer's parameters.

    Returns:
        Variable of no axes, of the dtype of ``x``.

    Source: sigmoid_cross_entropy_loss_layer.cpp.
    """
    xp = chainer.backend.get_array_module(x)
    target = targets.array.reshape(x.shape)
    counted = xp.ones(x.shape, bool) if layer.ignore_label is None else target.astype("i") != layer.ignore_label
    values = xp.maximum(x.array, 0) - x.array * target + xp.log1p(xp.exp(-abs(x.array)))
    each = with_gradient_of(x * (F.sigmoid(x).array - target), values) * counted
    return F.sum(each) / layer.divisor(len(x), x.size // max(1, len(x)), int(counted.sum()))
