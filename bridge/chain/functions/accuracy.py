"""Accuracy: the share of predictions that are right.

Source: accuracy_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_labels import IGNORED, flatten_places, read_labels

if TYPE_CHECKING:
    from bridge.layers.accuracy import Accuracy


def caffe_accuracy(x: Any, labels: Any, layer: Accuracy) -> tuple[Any, ...]:
    """The share of the places whose label is among the ``top_k`` highest values.

    Args:
        x: Variable (axes..., classes at ``layer.axis``, axes...).
        labels: Variable with one label per place, as numbers.
        layer: The layer's parameters.

    Returns:
        One variable of no axes, 0 to 1, in the dtype of ``x``; if the layer has two tops, also the share for each
        class, (classes).

    Raises:
        ModelError: A label is negative or not below the number of classes, and is not ``ignore_label``.

    Source: accuracy_layer.cpp.
    """
    xp = chainer.backend.get_array_module(x)
    places, _, _ = flatten_places(x, layer.axis)
    target, valid = read_labels(labels, places.shape[1], layer, layer.ignore_label)
    values, counted = places.array, target != IGNORED
    own = values[xp.arange(len(values)), target]
    right = counted & ((values >= own[:, None]).sum(axis=1) - 1 < layer.top_k)
    total = chainer.as_variable(xp.asarray(right.sum() / max(1, valid), dtype=x.dtype))
    if len(layer.tops) < 2:
        return (total,)
    of_class = target[:, None] == xp.arange(values.shape[1])
    numbers = of_class.sum(axis=0)
    shares = (of_class & right[:, None]).sum(axis=0) / xp.maximum(numbers, 1)
    return total, chainer.as_variable(shares.astype(x.dtype))
