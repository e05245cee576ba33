"""Sigmoid."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import ElementwiseLayer, layer_type


@layer_type("Sigmoid")
class Sigmoid(ElementwiseLayer):
    """``1 / (1 + exp(-x))``.

    Source: caffe.proto ``SigmoidParameter``, sigmoid_layer.cpp; ONNX ``Sigmoid``.
    """

    message = "sigmoid_param"

    def to_onnx(self, g: Any, *x: str) -> str:
        return str(g.Sigmoid(x[0]))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.sigmoid(x[0])
