"""ReLU6: ReLU up to six."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ReLU6")
class ReLU6(ElementwiseLayer):
    """``min(max(0, x) + negative_slope * min(0, x), 6)``.

    Source: relu6_layer.cpp of MobileNet-YOLO and other forks; ONNX ``Clip``, ``LeakyRelu``, ``Min``.
    """

    rounds_near_one = False
    message = "relu6_param"

    negative_slope: float = 0.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (0.0, 6.0)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if self.negative_slope:
            return str(g.Min(g.LeakyRelu(x[0], alpha=self.negative_slope), g.const(np.float32(6))))
        return str(g.Clip(x[0], g.const(np.float32(0)), g.const(np.float32(6))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        if self.negative_slope:
            y = F.where(x[0].array > 0, x[0], x[0] * self.negative_slope)
            return F.where(y.array < 6, y, x[0].xp.full_like(y.array, 6))
        return F.clip(x[0], 0.0, 6.0)
