"""Scale: a product with a blob or a second input, and a shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.broadcast import BroadcastLayer
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Scale")
class Scale(BroadcastLayer):
    """``x * gamma + beta``, both repeated over the axes that they do not have.

    Blobs: with one bottom ``gamma`` (the extents of the bottom from ``axis`` on, over
    ``num_axes`` axes) and, with ``bias_term``, ``beta`` (likewise). With two bottoms the
    second is gamma, and the only blob is ``beta``.

    Attributes:
        axis: First axis of the bottom that gamma has.
        num_axes: How many; -1 is all to the end, 0 a single number.
        bias_term: Whether there is a shift.

    Source: caffe.proto ``ScaleParameter``, scale_layer.cpp; ONNX ``Mul``, ``Add``.
    """

    float16_safe = True
    rescales = True
    rounds_near_one = False
    message = "scale_param"
    chainer_params = {"gamma": "W", "beta": "b"}

    axis: int = 1
    num_axes: int = 1
    bias_term: bool = False

    def roles(self, stored: int) -> tuple[str, ...]:
        gamma = ("gamma",) if len(self.bottoms) < 2 else ()
        return (*gamma, "beta") if self.bias_term else gamma

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {role: self.operand_shape(*bottoms) for role in self.roles(0)}

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return 2

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        y = g.Mul(x[0], self.onnx_operand(g, "gamma", *x))
        return g.Add(y, self.onnx_operand(g, "beta", x[0])) if self.bias_term else y

    def chainer_tail(self, F: ChainerFunctions, link: LayerArrays) -> Any:
        if len(self.bottoms) > 1 or (self.axis, self.num_axes) != (1, 1):
            return None
        return F.tail(link.W, link.b if self.bias_term else None)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        y = x[0] * self.chainer_operand(F, x[1] if len(x) > 1 else link.W, x[0])
        return y + self.chainer_operand(F, link.b, x[0]) if self.bias_term else y
