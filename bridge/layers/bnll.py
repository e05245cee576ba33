"""BNLL: a smooth ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("BNLL")
class BNLL(ElementwiseLayer):
    """``log(1 + exp(x))``, the binomial normal log likelihood.

    Source: bnll_layer.cpp; ONNX ``Softplus``.
    """

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Softplus(x[0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.softplus(x[0])
