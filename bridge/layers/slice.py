"""Slice: one blob in pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bridge.layers.base import MANY, MovingLayer, Params, canonical_axis, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_END = 2**63 - 1


@layer_type("Slice")
class Slice(MovingLayer):
    """Cuts the bottom along ``axis``, at ``slice_point`` or into equal parts, one per top.

    Attributes:
        axis: The axis (``slice_dim`` in old files).
        slice_point: Where each top but the first begins.

    Source: caffe.proto ``SliceParameter``, slice_layer.cpp; ONNX ``Split``, ``Slice``.
    """

    message = "slice_param"
    bottom_count = (1, 1)
    top_count = (1, MANY)

    axis: int = 1
    slice_point: tuple[int, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        if "axis" in p and "slice_dim" in p:
            raise p.fail("has both axis and slice_dim", expected="one of them")
        return {**super().read(p), "axis": p.read("axis", int, p.read("slice_dim", int, 1))}

    def check_wiring(self) -> None:
        super().check_wiring()
        if self.slice_point and len(self.slice_point) != len(self.tops) - 1:
            raise self.fail(f"{len(self.slice_point)} slice_point for {len(self.tops)} tops", expected="one fewer")

    def points(self, extent: int) -> list[int]:
        """Where the tops begin, and the extent where the last one ends."""
        parts = len(self.tops)
        if not self.slice_point:
            if extent % parts:
                raise self.fail(f"extent {extent} does not divide into {parts} tops")
            return list(range(0, extent + 1, extent // parts)) if extent else [0] * (parts + 1)
        points = [0, *self.slice_point, extent]
        if any(a >= b for a, b in pairwise(points)):
            raise self.fail(f"slice_point {self.slice_point} does not rise within the extent {extent}")
        return points

    @property
    def shares_memory(self) -> bool:
        return len(self.tops) == 1

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        (bottom,) = bottoms
        axis = canonical_axis(self.axis, len(bottom), self)
        return tuple((*bottom[:axis], b - a, *bottom[axis + 1 :]) for a, b in pairwise(self.points(bottom[axis])))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        axis = canonical_axis(self.axis, len(g.shape(x[0])), self)
        if len(self.tops) < 2:
            return [x[0]]
        if self.slice_point and not g.shape(x[0]).fixed(axis):  # the last top takes what there is
            ends = pairwise([0, *self.slice_point, _END])
            return [g.Slice(x[0], g.ints([a]), g.ints([b]), g.ints([axis])) for a, b in ends]
        sizes = [b - a for a, b in pairwise(self.points(g.shape(x[0])[axis]))]
        return list(g.op("Split", x[0], g.ints(sizes), outputs=len(sizes), axis=axis))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axis = canonical_axis(self.axis, x[0].ndim, self)
        points = self.points(x[0].shape[axis])[1:-1]
        return tuple(F.split_axis(x[0], points, axis)) if points else (x[0],)
