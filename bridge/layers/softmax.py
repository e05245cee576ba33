"""Softmax along one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import NeuronLayer, canonical_axis, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Softmax")
class Softmax(NeuronLayer):
    """``exp(x) / sum exp(x)`` along ``axis``, every other position apart.

    Source: caffe.proto ``SoftmaxParameter``, softmax_layer.cpp; ONNX ``Softmax`` of opset 13.
    """

    float16_safe = True
    rounds_near_one = False
    probabilities = True
    message = "softmax_param"

    axis: int = 1

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        canonical_axis(self.axis, len(bottoms[0]), self)
        return (bottoms[0],)

    def summed_axes(self, rank: int) -> Shape:
        return (canonical_axis(self.axis, rank, self),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Softmax(x[0], axis=canonical_axis(self.axis, len(g.shape(x[0])), self))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.softmax(x[0], axis=canonical_axis(self.axis, x[0].ndim, self))
