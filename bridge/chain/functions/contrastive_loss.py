"""ContrastiveLoss: small distances for similar pairs, large ones for others.

Source: contrastive_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer

if TYPE_CHECKING:
    from bridge.layers.contrastive_loss import ContrastiveLoss

F = chainer.functions


def caffe_contrastive_loss(a: Any, b: Any, alike: Any, layer: ContrastiveLoss) -> Any:
    """Half the mean over pairs of ``d^2`` for similar pairs, and of ``max(0, margin - d)^2`` for others.

    ``d`` is the Euclidean distance. The legacy version has ``max(0, margin - d^2)`` for pairs that are not similar.

    Args:
        a: Variable (N, ...).
        b: Variable of the same shape.
        alike: Variable with N numbers: 0 where the pair is not similar.
        layer: The layer's parameters.

    Returns:
        Variable of no axes, of the dtype of ``a``.

    Source: contrastive_loss_layer.cpp.
    """
    xp = chainer.backend.get_array_module(a)
    difference = F.reshape(a, (len(a), -1)) - F.reshape(b, (len(b), -1))
    squared = F.sum(F.square(difference), axis=1)
    if layer.legacy_version:
        unlike = F.relu(layer.margin - squared)
    else:  # Caffe's gradient has d + 1e-4 where the derivative has d
        distance = xp.sqrt(squared.array)
        missing = xp.maximum(layer.margin - distance, 0)
        unlike = missing * missing - missing / (distance + 1e-4) * (squared - squared.array)
    return F.sum(F.where(alike.array.reshape(-1).astype("i") != 0, squared, unlike)) / (2 * len(a))
