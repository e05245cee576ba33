"""Reshape: the same values under other extents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape, count, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Reshape")
class Reshape(MovingLayer):
    """Puts ``dims`` in the place of ``num_axes`` axes from ``axis`` on.

    Attributes:
        dims: The new extents; 0 keeps the bottom's extent at that place, -1 is what is left.
        axis: First axis replaced; a negative one counts from behind the last axis.
        num_axes: How many are replaced; -1 is all to the end, 0 inserts.

    Source: caffe.proto ``ReshapeParameter``, reshape_layer.cpp; ONNX ``Reshape``.
    """

    in_place = False
    message = "reshape_param"

    bottom_count = (1, 1)
    top_count = (1, 1)

    dims: tuple[int, ...] = ()
    axis: int = 0
    num_axes: int = -1

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        dims = p.inner("shape").read("dim", tuple[int, ...], ())
        if any(dim < -1 for dim in dims) or dims.count(-1) > 1:
            raise p.fail(f"shape {dims} is not a list of extents with at most one -1")
        return {**super().read(p), "dims": dims}

    def _range(self, rank: int) -> tuple[int, int]:
        """The first axis that is replaced, and the one behind the last."""
        start = self.axis if self.axis >= 0 else rank + self.axis + 1
        stop = rank if self.num_axes == -1 else start + self.num_axes
        if not 0 <= start <= stop <= rank:
            raise self.fail(f"axis {self.axis} and num_axes {self.num_axes} are outside the {rank} axes of the input")
        if any(dim == 0 and start + place >= rank for place, dim in enumerate(self.dims)):
            raise self.fail(f"shape {self.dims} keeps an axis that the input of {rank} axes does not have")
        return start, stop

    @property
    def shares_memory(self) -> bool:
        return True

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        (bottom,) = bottoms
        start, stop = self._range(len(bottom))
        dims = [dim or bottom[start + place] for place, dim in enumerate(self.dims)]
        if -1 in dims:
            place = dims.index(-1)
            known = count(bottom[:start]) * count(bottom[stop:]) * count(dims[:place] + dims[place + 1 :])
            dims[place] = count(bottom) // known if known else 0
        top = (*bottom[:start], *dims, *bottom[stop:])
        if count(top) != count(bottom):
            raise self.fail(f"{count(bottom)} values ({times(bottom)}) do not fill {times(top)}")
        return (top,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        start, stop = self._range(len(g.shape(x[0])))
        return g.reshape(x[0], [0] * start + list(self.dims), stop)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.reshape(x[0], self.infer(x[0].shape)[0])
