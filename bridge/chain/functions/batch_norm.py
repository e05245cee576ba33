"""BatchNorm: normalization by the stored statistics, or by those of the batch, which it then adds to the stored ones.

Source: batch_norm_layer.cpp of BVLC Caffe and NVCaffe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_tail import Tail, tail

if TYPE_CHECKING:
    from bridge.layers.batch_norm import BatchNorm
    from bridge.layers.builders import LayerArrays

F = chainer.functions


def caffe_batch_norm(x: Any, link: LayerArrays, layer: BatchNorm) -> Any:
    """``(x - mean) / sqrt(variance + eps)`` per channel, and ``gamma`` and ``beta`` in NVCaffe's form.

    In training with statistics of the batch, the link's ``mean``, ``variance`` and ``scale_factor`` are updated.

    Args:
        x: Variable (N, C, ...).
        link: Has ``mean`` (C), ``variance`` (C) and ``scale_factor`` (1); in NVCaffe's form also ``gamma`` (C)
            and ``beta`` (C).
        layer: The layer's parameters.

    Returns:
        Variable (N, C, ...).

    Source: batch_norm_layer.cpp of BVLC Caffe and NVCaffe.
    """
    xp, dtype = chainer.backend.get_array_module(x), np.result_type(x.dtype, link.mean.dtype)  # float32 for float16
    if layer.scale_bias:
        gamma, beta = F.cast(link.gamma, dtype), F.cast(link.beta, dtype)
    else:
        gamma, beta = xp.ones(x.shape[1], dtype=dtype), xp.zeros(x.shape[1], dtype=dtype)
    if _is_stored(link, layer):
        mean, variance = (values.astype(dtype, copy=False) for values in _statistics(xp, link, layer))
        return F.fixed_batch_normalization(x, gamma, beta, mean, variance, eps=layer.eps)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    if _moves(link):
        _accumulate(x.array, axes, link, layer)
    return F.batch_normalization(x, gamma, beta, eps=layer.eps, running_mean=None, running_var=None, axis=axes)


def caffe_batch_norm_tail(link: LayerArrays, layer: BatchNorm) -> Tail | None:
    """What :func:`caffe_batch_norm` does to each channel by the stored statistics.

    Args:
        link: The same.
        layer: The layer's parameters.

    Returns:
        ``None`` where it takes the statistics of the batch.

    Source: batch_norm_layer.cpp of BVLC Caffe and NVCaffe.
    """
    if not _is_stored(link, layer):
        return None
    xp = chainer.backend.get_array_module(link.mean)
    mean, variance = _statistics(xp, link, layer)
    factor = 1 / xp.sqrt(variance + variance.dtype.type(layer.eps))
    own = tail(factor, -mean * factor)
    return own.then(tail(link.gamma, link.beta)) if layer.scale_bias else own


def _moves(link: LayerArrays) -> bool:
    """Whether the statistics of a batch are added to the stored ones."""
    return bool(chainer.config.train and not link.frozen)


def _is_stored(link: LayerArrays, layer: BatchNorm) -> bool:
    """Whether a batch is normalized by the stored statistics."""
    if layer.scale_bias or layer.use_global_stats is None:
        return not _moves(link)
    return layer.use_global_stats


def _statistics(xp: Any, link: LayerArrays, layer: BatchNorm) -> tuple[Any, Any]:
    """The stored mean and variance as they count."""
    inverse = 1 if layer.scale_bias else _inverse(xp, link.scale_factor)
    return link.mean * inverse, link.variance * inverse


def _inverse(xp: Any, factor: Any) -> Any:
    """One over the scale factor; 0 for 0."""
    zero = factor == 0
    return xp.where(zero, 0, 1 / xp.where(zero, 1, factor)).astype(factor.dtype)


def _accumulate(x: Any, axes: tuple[int, ...], link: LayerArrays, layer: BatchNorm) -> None:
    """Add the batch's statistics to the stored ones, as Caffe does in the forward pass."""
    kept, size, dtype = layer.moving_average_fraction, x.size // x.shape[1], link.mean.dtype
    added = 1 - kept if layer.scale_bias else 1
    unbiased = size / (size - 1) if size > 1 and not layer.scale_bias else 1
    if not layer.scale_bias:
        link.scale_factor = (link.scale_factor * kept + 1).astype(link.scale_factor.dtype)
    link.mean = (link.mean * kept + added * x.mean(axis=axes, dtype=dtype)).astype(dtype)
    link.variance = (link.variance * kept + added * unbiased * x.var(axis=axes, dtype=dtype)).astype(dtype)
