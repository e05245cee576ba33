"""Sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Sigmoid")
class Sigmoid(ElementwiseLayer):
    """``1 / (1 + exp(-x))``.

    Source: caffe.proto ``SigmoidParameter``, sigmoid_layer.cpp; ONNX ``Sigmoid``.
    """

    message = "sigmoid_param"

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Sigmoid(x[0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.sigmoid(x[0])
