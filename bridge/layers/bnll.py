"""BNLL: a smooth ReLU."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import ElementwiseLayer, layer_type


@layer_type("BNLL")
class BNLL(ElementwiseLayer):
    """``log(1 + exp(x))``, the binomial normal log likelihood.

    Source: bnll_layer.cpp; ONNX ``Softplus``.
    """

    def to_onnx(self, g: Any, *x: str) -> str:
        return str(g.Softplus(x[0]))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.softplus(x[0])
