"""Swish: a value times its own sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Swish")
class Swish(ElementwiseLayer):
    """``x sigmoid(beta x)``.

    Source: caffe.proto ``SwishParameter``, swish_layer.cpp; ONNX ``Mul``, ``Sigmoid``.
    """

    message = "swish_param"

    beta: float = 1.0

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        scaled = x[0] if self.beta == 1 else g.Mul(x[0], g.const(np.float32(self.beta)))
        return g.Mul(x[0], g.Sigmoid(scaled))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return x[0] * F.sigmoid(x[0] * self.beta)
