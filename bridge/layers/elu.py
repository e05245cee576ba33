"""ELU: linear above zero, exponential below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ELU")
class ELU(ElementwiseLayer):
    """``x`` where it is positive, ``alpha (exp(x) - 1)`` elsewhere.

    Source: caffe.proto ``ELUParameter``, elu_layer.cpp; ONNX ``Elu``.
    """

    message = "elu_param"

    alpha: float = 1.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (0.0,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Elu(x[0], alpha=self.alpha)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.elu(x[0], self.alpha)
