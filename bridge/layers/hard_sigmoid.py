"""HardSigmoid: a sigmoid of three straight lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("HardSigmoid")
class HardSigmoid(ElementwiseLayer):
    """``max(0, min(1, alpha x + beta))``.

    Source: hardsigmoid_layer.cpp, hard_sigmoid_layer.cpp of several forks; ONNX ``HardSigmoid``.
    """

    rounds_near_one = False
    message = "hardsigmoid_param"
    aliases = ("hard_sigmoid_param",)

    alpha: float = 0.2
    beta: float = 0.5

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (-self.beta / self.alpha, (1 - self.beta) / self.alpha) if self.alpha else ()

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.HardSigmoid(x[0], alpha=self.alpha, beta=self.beta)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.clip(x[0] * self.alpha + self.beta, 0.0, 1.0)
