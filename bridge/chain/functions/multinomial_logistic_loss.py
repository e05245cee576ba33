"""MultinomialLogisticLoss: the cross entropy of given probabilities.

Source: multinomial_logistic_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_labels import SMALLEST, read_labels, with_gradient_of

if TYPE_CHECKING:
    from bridge.layers.multinomial_logistic_loss import MultinomialLogisticLoss

F = chainer.functions


def caffe_multinomial_logistic_loss(x: Any, labels: Any, layer: MultinomialLogisticLoss) -> Any:
    """The mean of ``-log x[label]``; a probability below 1e-20 counts as 1e-20.

    Args:
        x: Variable (N, classes, ...) of probabilities.
        labels: Variable with N labels, as numbers.
        layer: The layer's parameters.

    Returns:
        Variable of no axes, of the dtype of ``x``.

    Raises:
        ModelError: A label is negative or not below the number of classes.

    Source: multinomial_logistic_loss_layer.cpp.
    """
    flat = F.reshape(x, (len(x), -1))
    target, _ = read_labels(labels, flat.shape[1], layer, None)
    picked = F.select_item(flat, target)
    return -F.sum(F.log(with_gradient_of(picked, picked.array.clip(SMALLEST, None)))) / len(x)
