"""The links of a :class:`~bridge.chain.caffe_function.CaffeFunction`: Chainer's own where it has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.build import LayerLink
from bridge.chain.functions import F, chainer
from bridge.chain.stored import StoredArrays
from bridge.layers import CaffeLayer
from bridge.layers.batch_norm import BatchNorm
from bridge.layers.convolution import Convolution
from bridge.layers.deconvolution import Deconvolution
from bridge.layers.inner_product import InnerProduct
from bridge.layers.scale import Scale

_L = chainer.links

Call = Callable[..., Any]
"""Computes a layer: takes the link and the bottoms, gives a variable or several."""
Made = tuple[Any, Call]


def link_of(layer: CaffeLayer, bare: CaffeLayer, stored: StoredArrays) -> Made:
    """A link with the blobs of a layer, and how to compute the layer with it.

    Args:
        layer: The layer with its blobs.
        bare: The layer without them.
        stored: Makes the parameters.
    """
    make = _MAKERS.get(type(layer))
    link, call = (make(layer, bare, stored) if make else None) or _own(layer, bare, stored)
    link.caffe_layer = bare
    return link, call


@dataclasses.dataclass(frozen=True)
class _OfLayer:
    """The layer's own computation, on a link that has its arrays under the layer's names."""

    layer: CaffeLayer

    def __call__(self, link: Any, *bottoms: Any) -> Any:
        return self.layer.to_chainer(F, link, *bottoms)


def _own(layer: CaffeLayer, bare: CaffeLayer, stored: StoredArrays) -> Made:
    """A link of the layer's own kind, where Chainer has none."""
    link = LayerLink(
        bare, {role: stored.array(blob) for role, blob in layer.blobs.entries() if role in bare.statistics}
    )
    with link.init_scope():
        for role, blob in layer.blobs.entries():
            if role not in bare.statistics:
                setattr(link, bare.array_name(role), stored.parameter(blob))
    return link, _OfLayer(bare)


def _convolution(layer: Convolution, bare: CaffeLayer, stored: StoredArrays) -> Made | None:
    weight = layer.blobs.blob("weight").shape
    if len(weight) != 4 or layer.axis != 1:
        return None
    kernel, stride, pad, dilation = layer.window(2)
    transposed = isinstance(layer, Deconvolution)
    kind = _L.Deconvolution2D if transposed else _L.Convolution2D
    channels = weight[0] if transposed else weight[1] * layer.group
    link = kind(None, layer.num_output, kernel, stride, pad, nobias=True, dilate=dilation, groups=layer.group)
    link.in_channels = channels
    _give(link, layer, stored, W="weight", b="bias")
    link.W.caffe_group = layer.group  # for bridge.compat.initial: a link without groups may be filled with it
    return link, _OfLayer(bare)


def _inner_product(layer: InnerProduct, bare: CaffeLayer, stored: StoredArrays) -> Made | None:
    if layer.transpose:
        return None
    outputs, inputs = layer.blobs.blob("weight").shape
    link = _L.Linear(None, outputs, nobias=True)
    link.in_size = inputs
    _give(link, layer, stored, W="weight", b="bias")
    return link, _OfLayer(bare)


def _scale(layer: Scale, bare: CaffeLayer, stored: StoredArrays) -> Made:
    link = _L.Scale(layer.axis)
    _give(link, layer, stored, W="gamma")
    if "beta" in layer.blobs:
        shift = _L.Bias(layer.axis)
        _give(shift, layer, stored, b="beta")
        with link.init_scope():
            link.bias = shift
    return link, _OfScale(bare)


@dataclasses.dataclass(frozen=True)
class _OfScale:
    layer: CaffeLayer

    def __call__(self, link: Any, *bottoms: Any) -> Any:
        arrays = LinkArrays(link.xp, W=getattr(link, "W", None), b=link.bias.b if hasattr(link, "bias") else None)
        return self.layer.to_chainer(F, arrays, *bottoms)


def _batch_norm(layer: BatchNorm, bare: CaffeLayer, stored: StoredArrays) -> Made:
    mean, variance = (np.array(values, np.float32) for values in layer.statistics_values())
    link = _L.BatchNormalization(
        len(mean), decay=layer.moving_average_fraction, eps=layer.eps, use_gamma=False, use_beta=False,
        initial_avg_mean=mean, initial_avg_var=variance,
    )  # fmt: skip
    _give(link, layer, stored, gamma="gamma", beta="beta")
    return link, _OfBatchNorm(layer=bare)


@dataclasses.dataclass(frozen=True)
class _OfBatchNorm:
    """Training is the link's own, which keeps running averages as Chainer does; the rest is the layer's."""

    layer: Any

    def __call__(self, link: Any, x: Any) -> Any:
        if chainer.config.train and not self.layer.use_global_stats:
            return link(x)
        one = link.xp.ones(1, link.avg_mean.dtype)
        arrays = LinkArrays(
            link.xp, mean=link.avg_mean, variance=link.avg_var, scale_factor=one, gamma=link.gamma, beta=link.beta
        )
        return self.layer.to_chainer(F, arrays, x)


class LinkArrays:
    """LinkArrays under the names that a layer's computation asks for; statistics stay as they are.

    Args:
        xp: NumPy or CuPy.
        arrays: The arrays by name.

    Source: :class:`bridge.layers.builders.LayerArrays`.
    """

    frozen = True

    def __init__(self, xp: Any, **arrays: Any) -> None:
        vars(self).update(xp=xp, **arrays)

    if TYPE_CHECKING:
        xp: Any

        def __getattr__(self, name: str) -> Any: ...


def _give(link: Any, layer: CaffeLayer, stored: StoredArrays, **roles: str) -> None:
    """Register a parameter for each of the layer's blobs under the link's name for it."""
    with link.init_scope():
        for name, role in roles.items():
            if role in layer.blobs:
                setattr(link, name, stored.parameter(layer.blobs.blob(role)))


_MAKERS: dict[type, Callable[..., Made | None]] = {
    Convolution: _convolution,
    Deconvolution: _convolution,
    InnerProduct: _inner_product,
    Scale: _scale,
    BatchNorm: _batch_norm,
}
