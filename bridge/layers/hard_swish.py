"""HardSwish: Swish of straight lines and a parabola."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("HardSwish")
class HardSwish(ElementwiseLayer):
    """``x max(0, min(1, x / 6 + 1 / 2))``.

    Source: hard_swish_layer.cpp, hardswish_layer.cpp of several forks; Howard et al.,
    Searching for MobileNetV3, 2019; ONNX ``HardSigmoid``, ``Mul`` (``HardSwish`` from opset 14 on).
    """

    rounds_near_one = False
    message = "hardswish_param"

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (-3.0, 3.0)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if g.opset >= 14:
            return g.HardSwish(x[0])
        return g.Mul(x[0], g.HardSigmoid(x[0], alpha=1 / 6, beta=0.5))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return x[0] * F.clip(x[0] / 6 + 0.5, 0.0, 1.0)
