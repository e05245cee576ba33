"""Mish: a value times the tangent of its smooth ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Mish")
class Mish(ElementwiseLayer):
    """``x tanh(log(1 + exp(x)))``.

    Source: mish_layer.cpp of several forks; Misra, Mish: a self regularized non-monotonic
    activation function, 2019; ONNX ``Mul``, ``Tanh``, ``Softplus``.
    """

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Mul(x[0], g.Tanh(g.Softplus(x[0])))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return x[0] * F.tanh(F.softplus(x[0]))
