"""ELU: linear above zero, exponential below."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import ElementwiseLayer, layer_type


@layer_type("ELU")
class ELU(ElementwiseLayer):
    """``x`` where it is positive, ``alpha (exp(x) - 1)`` elsewhere.

    Source: caffe.proto ``ELUParameter``, elu_layer.cpp; ONNX ``Elu``.
    """

    message = "elu_param"

    alpha: float = 1.0

    def to_onnx(self, g: Any, *x: str) -> str:
        return str(g.Elu(x[0], alpha=self.alpha))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.elu(x[0], self.alpha)
