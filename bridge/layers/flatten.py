"""Flatten: several axes as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, canonical_axis, layer_type
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Flatten")
class Flatten(MovingLayer):
    """The axes ``axis`` to ``end_axis``, that one included, become one.

    Source: caffe.proto ``FlattenParameter``, flatten_layer.cpp; ONNX ``Flatten``, ``Reshape``.
    """

    in_place = False
    message = "flatten_param"

    bottom_count = (1, 1)
    top_count = (1, 1)

    axis: int = 1
    end_axis: int = -1

    def _range(self, rank: int) -> tuple[int, int]:
        """The first axis, and the one behind the last."""
        start = canonical_axis(self.axis, rank, self)
        stop = canonical_axis(self.end_axis, rank, self, "end_axis") + 1
        if stop < start:
            raise self.fail(f"end_axis {self.end_axis} lies before axis {self.axis}")
        return start, stop

    @property
    def shares_memory(self) -> bool:
        return True

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        start, stop = self._range(len(bottoms[0]))
        return ((*bottoms[0][:start], count(bottoms[0][start:stop]), *bottoms[0][stop:]),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        rank = len(g.shape(x[0]))
        start, stop = self._range(rank)
        if stop - start == 1:
            return x[0]
        if start == 1 and stop == rank:
            return g.Flatten(x[0], axis=1)
        return g.reshape(x[0], [0] * start + [-1], stop)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.reshape(x[0], self.infer(x[0].shape)[0])
