"""InfogainLoss: the cross entropy with a matrix of weights.

Source: infogain_loss_layer.cpp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_labels import IGNORED, SMALLEST, flatten_places, read_labels, with_gradient_of

if TYPE_CHECKING:
    from bridge.layers.infogain_loss import InfogainLoss

F = chainer.functions


def caffe_infogain_loss(x: Any, labels: Any, matrix: Any, layer: InfogainLoss) -> Any:
    """``-sum_k H[label, k] log softmax(x)[k]``, summed over places that are not ignored and divided as the layer says.

    A softmax below 1e-20 counts as 1e-20.

    Args:
        x: Variable (axes..., classes at ``layer.axis``, axes...).
        labels: Variable with one label per place, as numbers.
        matrix: Variable H with classes x classes values, in any shape.
        layer: The layer's parameters.

    Returns:
        Variable of no axes, of the dtype of ``x``.

    Raises:
        ModelError: A label is negative or not below the number of classes, and is not ``ignore_label``.

    Source: infogain_loss_layer.cpp.
    """
    places, outer, inner = flatten_places(x, layer.axis)
    target, valid = read_labels(labels, places.shape[1], layer, layer.ignore_label)
    weights = matrix.array.reshape(places.shape[1], -1)[target] * (target != IGNORED)[:, None]
    logs = F.log_softmax(places)
    bounded = with_gradient_of(logs, logs.array.clip(math.log(SMALLEST), None))
    return -F.sum(weights * bounded) / layer.divisor(outer, inner, valid)
