"""Crop: a window of one blob, as large as another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, canonical_axis, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Crop")
class Crop(MovingLayer):
    """Cuts the first bottom to the extents of the second, in every axis from ``axis`` on.

    Attributes:
        axis: First axis that is cut.
        offset: Where the window begins: none for 0, one value for all axes, or one for each.

    Source: caffe.proto ``CropParameter``, crop_layer.cpp; ONNX ``Slice``.
    """

    message = "crop_param"

    bottom_count = (2, 2)
    top_count = (1, 1)

    axis: int = 2
    offset: tuple[int, ...] = ()

    def _offsets(self, rank: int) -> tuple[int, list[int]]:
        """The first axis that is cut, and where the window begins in it and in those behind it."""
        axis = canonical_axis(self.axis, rank, self)
        if len(self.offset) not in (0, 1, rank - axis):
            raise self.fail(
                f"{len(self.offset)} offset for {rank - axis} axes from {axis} on", expected="1 or one each"
            )
        return axis, list(self.offset if len(self.offset) > 1 else (self.offset or (0,)) * (rank - axis))

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        source, size = bottoms
        axis, offsets = self._offsets(len(source))
        if len(size) < len(source):
            raise self.fail(f"bottom 1 has {len(size)} axes", expected=f"{len(source)} as bottom 0")
        for place, offset in enumerate(offsets, axis):
            if offset < 0 or source[place] - offset < size[place]:
                raise self.fail(f"axis {place}: {size[place]} from {offset} on is not within {source[place]}")
        return ((*source[:axis], *size[axis : len(source)]),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        shape = g.shape(x[0])
        axis, offsets = self._offsets(len(shape))
        fixed = all(g.shape(value).fixed(place) for value in x for place in range(axis, len(shape)))
        if fixed and shape[axis:] == g.shape(x[1])[axis : len(shape)]:
            return x[0]
        if fixed:
            ends = g.ints([offset + n for offset, n in zip(offsets, g.shape(x[1])[axis:], strict=False)])
        else:
            ends = g.extents(x[1], axis, len(shape))
            ends = g.Add(ends, g.ints(offsets)) if any(offsets) else ends
        return g.Slice(x[0], g.ints(offsets), ends, g.ints(list(range(axis, len(shape)))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axis, offsets = self._offsets(x[0].ndim)
        window = (slice(a, a + n) for a, n in zip(offsets, x[1].shape[axis:], strict=False))
        return F.get_item(x[0], (*(slice(None) for _ in range(axis)), *window))
