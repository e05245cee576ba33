"""Concat along one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MANY, MovingLayer, Params, canonical_axis, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Concat")
class Concat(MovingLayer):
    """The bottoms one after the other along ``axis`` (``concat_dim`` in old files).

    Source: caffe.proto ``ConcatParameter``, concat_layer.cpp; ONNX ``Concat``.
    """

    message = "concat_param"
    bottom_count = (1, MANY)
    top_count = (1, 1)

    axis: int = 1

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        if "axis" in p and "concat_dim" in p:
            raise p.fail("has both 'axis' and 'concat_dim'", expected="one of them")
        return {"axis": p.read("axis", int, p.read("concat_dim", int, 1))}

    @property
    def shares_memory(self) -> bool:
        return len(self.bottoms) == 1

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        first = bottoms[0]
        axis = canonical_axis(self.axis, len(first), self)
        for index, other in enumerate(bottoms):
            if len(other) != len(first) or other[:axis] + other[axis + 1 :] != first[:axis] + first[axis + 1 :]:
                raise self.fail(f"bottom {index} is {times(other)}, which does not join {times(first)} at axis {axis}")
        return ((*first[:axis], sum(other[axis] for other in bottoms), *first[axis + 1 :]),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return x[0] if len(x) == 1 else g.Concat(*x, axis=canonical_axis(self.axis, len(g.shape(x[0])), self))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.concat(x, axis=canonical_axis(self.axis, x[0].ndim, self))
