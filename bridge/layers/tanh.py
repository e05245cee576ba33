"""TanH: the hyperbolic tangent."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import ElementwiseLayer, layer_type


@layer_type("TanH")
class TanH(ElementwiseLayer):
    """``tanh(x)``.

    Source: caffe.proto ``TanHParameter``, tanh_layer.cpp; ONNX ``Tanh``.
    """

    message = "tanh_param"

    def to_onnx(self, g: Any, *x: str) -> str:
        return str(g.Tanh(x[0]))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.tanh(x[0])
