"""Twins of Convolution and InnerProduct whose weights are pruned by masks, or rounded to powers of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import CaffeLayer, layer_type
from bridge.layers.convolution import Convolution
from bridge.layers.inner_product import InnerProduct
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_TRAINING = dict.fromkeys(
    (
        "gamma", "power", "c_rate", "iter_stop", "alpha_low", "alpha_high", "portion", "num_quantum_values",
        "weight_mask_filler", "bias_mask_filler",
    ),
    "says how training prunes; the masks that came of it are stored",
)  # fmt: skip
_MASKS = {"weight_mask": 1.0, "bias_mask": 1.0}
_MATRICES = {"weight": 2, "bias": 1, "weight_mask": 2, "bias_mask": 1}


class _Masked(CaffeLayer):
    """What the twins share: a mask for each blob of the class that computes, which stands behind this one."""

    if TYPE_CHECKING:
        bias_term: bool

    harmless = _TRAINING
    initial = _MASKS

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight", "bias", "weight_mask", "bias_mask") if self.bias_term else ("weight", "weight_mask")

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        shapes = super().blob_shapes(*bottoms)
        return {role: shapes[role.removesuffix("_mask")] for role in self.roles(0)}


class _Pruned(_Masked):
    """What the pruned twins share: ``weight * weight_mask`` and ``bias * bias_mask``."""

    def onnx_blobs(self, g: OnnxBuilder, shape: Shape | None = None) -> list[str]:
        weight = g.Mul(g.blob(self, "weight", shape), g.blob(self, "weight_mask", shape))
        return [weight, g.Mul(g.blob(self, "bias"), g.blob(self, "bias_mask"))] if self.bias_term else [weight]

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        return link.W * link.weight_mask, link.b * link.bias_mask if self.bias_term else None


@layer_type("CConvolution", "DNSConvolution")
class PrunedConvolution(_Pruned, Convolution):
    """A Convolution with ``weight * weight_mask`` and ``bias * bias_mask``.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: cconv_layer.cu of Dynamic-Network-Surgery, dns_conv_layer.cpp of Neural-Network-Model-Compressing.
    """

    more_messages = ("cconvolution_param", "dns_convolution_param")


@layer_type("CInnerProduct", "DNSInnerProduct")
class PrunedInnerProduct(_Pruned, InnerProduct):
    """An InnerProduct with ``weight * weight_mask`` and ``bias * bias_mask``.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: cinner_product_layer.cu of Dynamic-Network-Surgery, dns_inner_product_layer.cpp of
    Neural-Network-Model-Compressing.
    """

    more_messages = ("cinner_product_param", "dns_inner_product_param")
    ranks = _MATRICES


@layer_type("INQConvolution")
class QuantizedConvolution(_Masked, Convolution):
    """A Convolution whose weights training has rounded to powers of two; its masks are not computed with.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: inq_conv_layer.cpp of Neural-Network-Model-Compressing.
    """

    more_messages = ("inq_convolution_param",)


@layer_type("INQInnerProduct")
class QuantizedInnerProduct(_Masked, InnerProduct):
    """An InnerProduct whose weights training has rounded to powers of two; its masks are not computed with.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: inq_inner_product_layer.cpp of Neural-Network-Model-Compressing.
    """

    more_messages = ("inq_inner_product_param",)
    ranks = _MATRICES
