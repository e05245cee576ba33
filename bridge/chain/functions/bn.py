"""BN: the batch normalization of PSPNet, TSN and SegNet.

Source: bn_layer.cpp of PSPNet and SegNet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.bn import BN
    from bridge.layers.builders import LayerArrays

F = chainer.functions


def caffe_bn(x: Any, link: LayerArrays, layer: BN) -> Any:
    """``(x - mean) / sqrt(variance + eps) * gamma + beta`` per channel, by stored statistics or by the batch's own.

    In training with stored statistics, the link's ``mean`` and ``variance`` are moved towards those of the batch.

    Args:
        x: Variable (N, C, ...).
        link: Has ``gamma`` and ``beta``, and ``mean`` and ``variance`` where the layer stores four blobs; each of
            C values in any shape.
        layer: The layer's parameters.

    Returns:
        Variable (N, C, ...); a tuple with the batch's mean and variance, (1, C, 1, 1),
        where the layer has tops for them.

    Source: bn_layer.cpp of PSPNet and SegNet.
    """
    gamma, beta = (_per_channel(array, x.ndim) for array in (link.gamma, link.beta))
    stored = hasattr(link, "mean")  # the parameters do not say how many blobs the layer stores
    if not stored and layer.bn_mode == "INFERENCE":
        return x * gamma + beta
    train = stored and chainer.config.train and not layer.frozen and not link.frozen
    if stored and layer.stored and not train:
        mean, variance = (_per_channel(array, x.ndim) for array in (link.mean, link.variance))
        return (x - mean) / F.sqrt(variance + layer.eps) * gamma + beta
    axes = (0, *range(2, x.ndim))
    if train:
        _accumulate(x.array, axes, link, layer.momentum)
    mean = F.mean(x, axes, keepdims=True)
    centred = x - mean
    variance = F.mean(centred**2, axes, keepdims=True)
    y = centred / F.sqrt(variance + layer.eps) * gamma + beta
    statistics = [F.reshape(values, (1, gamma.size, 1, 1)) for values in (mean, variance)[: len(layer.tops) - 1]]
    return (y, *statistics) if statistics else y


def _per_channel(values: Any, rank: int) -> Any:
    """C values as (C, 1, ...), to be broadcast over (N, C, ...) of ``rank`` axes."""
    return F.reshape(values, (values.size, *[1] * (rank - 2)))


def _accumulate(x: Any, axes: Shape, link: LayerArrays, momentum: float) -> None:
    """Move the stored statistics towards the batch's, as Caffe does in the forward pass."""
    for name, values in (("mean", x.mean(axis=axes)), ("variance", x.var(axis=axes))):
        old = getattr(link, name)
        setattr(link, name, (old * momentum + values.reshape(old.shape) * (1 - momentum)).astype(old.dtype))
