"""HingeLoss: the loss of a maximum margin.

Source: hinge_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_labels import read_labels

if TYPE_CHECKING:
    from bridge.layers.hinge_loss import HingeLoss

F = chainer.functions


def caffe_hinge_loss(x: Any, labels: Any, layer: HingeLoss) -> Any:
    """``sum max(0, 1 - s x)^p / N``, s being 1 for the sample's class and -1 for the others, p 1 or 2 by ``norm``.

    Args:
        x: Variable (N, classes, ...).
        labels: Variable with N labels, as numbers.
        layer: The layer's parameters.

    Returns:
        Variable of no axes, of the dtype of ``x``.

    Raises:
        ModelError: A label is negative or not below the number of classes.

    Source: hinge_loss_layer.cpp.
    """
    above = _margins(x, labels, layer)
    return F.sum(above if layer.norm == "L1" else F.square(above)) / x.shape[0]


def _margins(x: Any, labels: Any, layer: HingeLoss) -> Any:
    """``max(0, 1 - s x)``, (N, classes)."""
    xp = chainer.backend.get_array_module(x)
    flat = F.reshape(x, (len(x), -1))
    target, _ = read_labels(labels, flat.shape[1], layer, None)
    signs = xp.ones_like(flat.array)
    signs[xp.arange(len(x)), target] = -1
    return F.relu(1 + signs * flat)
