"""TanH: the hyperbolic tangent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("TanH")
class TanH(ElementwiseLayer):
    """``tanh(x)``.

    Source: caffe.proto ``TanHParameter``, tanh_layer.cpp; ONNX ``Tanh``.
    """

    message = "tanh_param"

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Tanh(x[0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.tanh(x[0])
