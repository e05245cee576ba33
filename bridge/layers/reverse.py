"""Reverse: the other way round along one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import NeuronLayer, canonical_axis, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Reverse")
class Reverse(NeuronLayer):
    """Flips the bottom along ``axis``, as nets need it that read sequences both ways.

    Source: reverse_layer.cpp of forks with CTC; ONNX ``Slice``.
    """

    in_place = False
    adds_many = False
    float16_safe = True
    rounds_near_one = False
    message = "reverse_param"

    axis: int = 0

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        canonical_axis(self.axis, len(bottoms[0]), self)
        return (bottoms[0],)

    def batch_axis(self, bottom: int) -> int:
        return 1 if self.axis == 0 else 0

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        axis = canonical_axis(self.axis, len(g.shape(x[0])), self)
        return g.Slice(x[0], g.ints([-1]), g.ints([-(2**63)]), g.ints([axis]), g.ints([-1]))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.flip(x[0], canonical_axis(self.axis, x[0].ndim, self))
