"""Interp: bilinear resizing whose corners stay where they are, as DeepLab and PSPNet have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_END = 2**31 - 1


@layer_type("Interp")
class Interp(CaffeLayer):
    """Resize to a given size, or by factors: ``n`` becomes ``(n - 1) / shrink * zoom + 1``, rounded down at the ``/``.

    Given alone, a factor goes before ``height`` and ``width``; these go before both factors together.
    A negative pad cuts the input first.

    Attributes:
        height, width: The size; 0 where it is by factors.
        zoom_factor, shrink_factor: The factors.
        pad_beg, pad_end: 0, or minus how much is cut at the start and at the end of both axes.
        interp_type: How values between pixels are found.

    Source: caffe.proto ``InterpParameter``, interp_layer.cpp of DeepLab; ONNX ``Resize`` (align_corners).
    """

    adds_many = False
    float16_safe = True
    rounds_near_one = False
    message = "interp_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    height: int = 0
    width: int = 0
    zoom_factor: int = 1
    shrink_factor: int = 1
    pad_beg: int = 0
    pad_end: int = 0
    interp_type: Literal["bilinear"] = "bilinear"

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        by_factor = ("zoom_factor" in p) != ("shrink_factor" in p)
        by_size = not by_factor and "height" in p and "width" in p
        if not by_size and "zoom_factor" not in p and "shrink_factor" not in p:
            raise p.fail("needs height and width, or zoom_factor, or shrink_factor")
        unused = {"zoom_factor": 1, "shrink_factor": 1} if by_size else {"height": 0, "width": 0}
        values |= unused
        if any(values[name] < 1 for name in ("height", "width", "zoom_factor", "shrink_factor") if name not in unused):
            raise p.fail("sizes and factors must be 1 or more")
        if max(values["pad_beg"], values["pad_end"]) > 0:
            raise p.fail(f"pad_beg {values['pad_beg']} and pad_end {values['pad_end']} must not be positive")
        return values

    def position_extent(self, *bottoms: Shape) -> int:
        return max(bottoms[0][2:])

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="4")
        return ((*bottoms[0][:2], *self.space(bottoms[0][2:])),)

    def space(self, space: Shape) -> Shape:
        """(height, width) of the top for a bottom of (height, width) ``space``."""
        cut = [n + self.pad_beg + self.pad_end for n in space]
        if min(cut) < 1:
            raise self.fail(f"pad_beg {self.pad_beg} and pad_end {self.pad_end} leave nothing of {times(space)}")
        if self.height:
            return (self.height, self.width)
        return tuple((n - 1) // self.shrink_factor * self.zoom_factor + 1 for n in cut)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        y = x[0]
        if self.pad_beg or self.pad_end:
            y = g.Slice(y, g.ints([-self.pad_beg] * 2), g.ints([self.pad_end or _END] * 2), g.ints([2, 3]))
        sizes = self._sizes(g, x[0], y)
        return g.Resize(y, "", "", sizes, mode="linear", coordinate_transformation_mode="align_corners")

    def _sizes(self, g: OnnxBuilder, x: str, cut: str) -> str:
        """All four extents of the top, those that are open computed when it runs."""
        shape = g.shape(x)
        if self.height:
            space = [self.height, self.width]
        else:
            space = list(self.space(tuple(shape[2:]))) if shape.fixed(2) and shape.fixed(3) else []
        if space and shape.fixed(0):
            return g.ints([*shape[:2], *space])
        leading = g.Slice(g.Shape(x), g.ints([0]), g.ints([2]))
        if space:
            return g.Concat(leading, g.ints(space), axis=0)
        steps = g.Sub(g.Slice(g.Shape(cut), g.ints([2]), g.ints([4])), g.ints([1]))
        if self.shrink_factor > 1:
            steps = g.Div(steps, g.ints([self.shrink_factor]))
        return g.Concat(leading, g.Add(g.Mul(steps, g.ints([self.zoom_factor])), g.ints([1])), axis=0)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        height, width = x[0].shape[2:]
        cut = x[0][:, :, -self.pad_beg : height + self.pad_end, -self.pad_beg : width + self.pad_end]
        return F.caffe_interp(cut, self.space((height, width)))
