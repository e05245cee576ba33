"""ReLU, leaky where it has a slope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ReLU")
class ReLU(ElementwiseLayer):
    """``max(0, x) + negative_slope * min(0, x)``.

    Source: caffe.proto ``ReLUParameter``, relu_layer.cpp; ONNX ``Relu``, ``LeakyRelu``.
    """

    rounds_near_one = False
    message = "relu_param"

    negative_slope: float = 0.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (0.0,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.LeakyRelu(x[0], alpha=self.negative_slope) if self.negative_slope else g.Relu(x[0])

    def chainer_tail(self, F: ChainerFunctions, link: LayerArrays) -> Any:
        return None if self.negative_slope else F.tail(positive=True)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        if not self.negative_slope:
            return F.relu(x[0])
        return F.where(x[0].array > 0, x[0], x[0] * self.negative_slope)  # at 0 Caffe's gradient is the slope
