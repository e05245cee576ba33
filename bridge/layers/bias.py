"""Bias: the sum with a blob or a second input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.broadcast import BroadcastLayer
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Bias")
class Bias(BroadcastLayer):
    """``x + bias``, repeated over the axes that it does not have.

    Blobs: with one bottom ``bias`` (the extents of the bottom from ``axis`` on, over
    ``num_axes`` axes). With two bottoms the second is the bias, and there are none.

    Attributes:
        axis: First axis of the bottom that the bias has.
        num_axes: How many; -1 is all to the end, 0 a single number.

    Source: caffe.proto ``BiasParameter``, bias_layer.cpp; ONNX ``Add``.
    """

    float16_safe = True
    rounds_near_one = False
    message = "bias_param"
    filler_fields = {"bias": "filler"}
    adjusts = True

    axis: int = 1
    num_axes: int = 1

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("bias",) if len(self.bottoms) < 2 else ()

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {role: self.operand_shape(*bottoms) for role in self.roles(0)}

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return 2

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Add(x[0], self.onnx_operand(g, "bias", *x))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return x[0] + self.chainer_operand(F, x[1] if len(x) > 1 else link.b, x[0])
