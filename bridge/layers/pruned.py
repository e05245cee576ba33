"""Twins of Convolution and InnerProduct whose weights are pruned by masks, or rounded to powers of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
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


def _roles(bias_term: bool) -> tuple[str, ...]:
    return ("weight", "bias", "weight_mask", "bias_mask") if bias_term else ("weight", "weight_mask")


def _with_masks(shapes: dict[str, Shape], bias_term: bool) -> dict[str, Shape]:
    """The shapes of the blobs, a mask for each."""
    return {role: shapes[role.removesuffix("_mask")] for role in _roles(bias_term)}


@layer_type("CConvolution", "DNSConvolution")
class PrunedConvolution(Convolution):
    """A Convolution with ``weight * weight_mask`` and ``bias * bias_mask``.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: cconv_layer.cu of Dynamic-Network-Surgery, dns_conv_layer.cpp of Neural-Network-Model-Compressing.
    """

    more_messages = ("cconvolution_param", "dns_convolution_param")
    harmless = _TRAINING
    initial = _MASKS

    def roles(self, stored: int) -> tuple[str, ...]:
        return _roles(self.bias_term)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return _with_masks(super().blob_shapes(*bottoms), self.bias_term)

    def onnx_blobs(self, g: OnnxBuilder, shape: Shape | None) -> list[str]:
        weight = g.Mul(g.blob(self, "weight", shape), g.blob(self, "weight_mask", shape))
        return [weight, g.Mul(g.blob(self, "bias"), g.blob(self, "bias_mask"))] if self.bias_term else [weight]

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        return link.W * link.weight_mask, link.b * link.bias_mask if self.bias_term else None


@layer_type("CInnerProduct", "DNSInnerProduct")
class PrunedInnerProduct(InnerProduct):
    """An InnerProduct with ``weight * weight_mask`` and ``bias * bias_mask``.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: cinner_product_layer.cu of Dynamic-Network-Surgery, dns_inner_product_layer.cpp of
    Neural-Network-Model-Compressing.
    """

    more_messages = ("cinner_product_param", "dns_inner_product_param")
    harmless = _TRAINING
    initial = _MASKS
    ranks = {"weight": 2, "bias": 1, "weight_mask": 2, "bias_mask": 1}

    def roles(self, stored: int) -> tuple[str, ...]:
        return _roles(self.bias_term)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return _with_masks(super().blob_shapes(*bottoms), self.bias_term)

    def onnx_blobs(self, g: OnnxBuilder) -> list[str]:
        roles = ("weight", "bias")[: 1 + self.bias_term]
        return [g.Mul(g.blob(self, role), g.blob(self, f"{role}_mask")) for role in roles]

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        return link.W * link.weight_mask, link.b * link.bias_mask if self.bias_term else None


@layer_type("INQConvolution")
class QuantizedConvolution(Convolution):
    """A Convolution whose weights training has rounded to powers of two; its masks are not computed with.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: inq_conv_layer.cpp of Neural-Network-Model-Compressing.
    """

    more_messages = ("inq_convolution_param",)
    harmless = _TRAINING
    initial = _MASKS

    def roles(self, stored: int) -> tuple[str, ...]:
        return _roles(self.bias_term)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return _with_masks(super().blob_shapes(*bottoms), self.bias_term)


@layer_type("INQInnerProduct")
class QuantizedInnerProduct(InnerProduct):
    """An InnerProduct whose weights training has rounded to powers of two; its masks are not computed with.

    Blobs: ``weight``, ``bias``, ``weight_mask``, ``bias_mask``; those of the bias only with ``bias_term``.

    Source: inq_inner_product_layer.cpp of Neural-Network-Model-Compressing.
    """

    more_messages = ("inq_inner_product_param",)
    harmless = _TRAINING
    initial = _MASKS
    ranks = {"weight": 2, "bias": 1, "weight_mask": 2, "bias_mask": 1}

    def roles(self, stored: int) -> tuple[str, ...]:
        return _roles(self.bias_term)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return _with_masks(super().blob_shapes(*bottoms), self.bias_term)
