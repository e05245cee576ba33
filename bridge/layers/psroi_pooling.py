"""PSROIPooling: the mean in each cell of a grid over each region, each cell in channels of its own, as in R-FCN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers import boxes as steps
from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.layers.boxes import random_regions
from bridge.schema import Shape, count, times
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("PSROIPooling")
class PSROIPooling(CaffeLayer):
    """Cell (i, j) of channel ``c`` is the mean of channel ``(c group_size + i) group_size + j`` over that cell.

    Bottom 1 has rows (image, x1, y1, x2, y2), whose corners are rounded and then taken to bottom 0 by
    ``spatial_scale``; the top is (rows, output_dim, group_size, group_size). Cells without a pixel are 0.

    Source: caffe.proto ``PSROIPoolingParameter``, psroi_pooling_layer.cu of R-FCN; ONNX ``CumSum``, ``Gather``;
    Dai et al., R-FCN, 2016.
    """

    adds_many = False
    rounds_near_one = False
    message = "psroi_pooling_param"
    bottom_count = (2, 2)
    top_count = (1, 1)

    spatial_scale: float
    output_dim: int
    group_size: int

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if min(values["output_dim"], values["group_size"]) < 1:
            raise p.fail("output_dim and group_size must be 1 or more")
        return values

    def fill(self, bottom: int) -> Fill | None:
        return random_regions if bottom == 1 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        x, rois = bottoms
        channels = self.output_dim * self.group_size**2
        if len(x) != 4 or x[1] != channels or count(rois[1:]) != 5:
            raise self.fail(
                f"the inputs are {times(x)} and {times(rois)}", expected=f"{channels} channels and rows of 5"
            )
        return ((rois[0], self.output_dim, self.group_size, self.group_size),)

    def channels(self) -> np.ndarray:
        """(output_dim, group_size, group_size) int64: the channel of the bottom for each place of the top."""
        size = self.group_size
        return np.arange(self.output_dim * size * size, dtype=np.int64).reshape(-1, size, size)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        rois = g.Reshape(x[1], g.ints([-1, 5]))
        image = g.Reshape(g.Cast(steps.part(g, rois, 1, 0, 1), to=7), g.ints([-1, 1, 1, 1]))
        low, high = self._bounds(g, rois, g.Slice(g.Shape(x[0]), g.ints([2]), g.ints([4])))
        # sums over rectangles from the corner, in double precision, so that their differences are exact enough
        sums = g.CumSum(g.CumSum(g.Cast(x[0], to=11), g.const(np.int64(2))), g.const(np.int64(3)))
        sums = g.Pad(sums, g.ints([0, 0, 1, 1, 0, 0, 0, 0]))
        rows, columns = (steps.extent(g, sums, axis) for axis in (2, 3))
        plane = g.Add(g.Mul(image, g.ints([self.channels().size])), g.const(self.channels()))
        flat = g.Reshape(sums, g.ints([-1]))

        def corner(row: str, column: str) -> str:
            return g.Gather(flat, g.Add(g.Mul(g.Add(g.Mul(plane, rows), row), columns), column))

        # (rows, 1, group_size, 1) and (rows, 1, 1, group_size)
        top, bottom = (g.Unsqueeze(steps.part(g, bound, 1, 1, 2), g.ints([3])) for bound in (low, high))
        left, right = (g.Unsqueeze(steps.part(g, bound, 1, 0, 1), g.ints([2])) for bound in (low, high))
        total = g.Add(g.Sub(g.Sub(corner(bottom, right), corner(top, right)), corner(bottom, left)), corner(top, left))
        area = g.Mul(g.Sub(bottom, top), g.Sub(right, left))
        empty = g.Or(g.LessOrEqual(bottom, top), g.LessOrEqual(right, left))
        mean = g.Cast(g.Div(total, g.Cast(area, to=11)), to=1)
        return g.Where(empty, g.const(np.float32(0)), mean)

    def _bounds(self, g: OnnxBuilder, rois: str, space: str) -> tuple[str, str]:
        """First pixel of each cell and the one after its last, (rows, 2 for x and y, group_size) int64."""
        corners = steps.round_half_away(g, steps.part(g, rois, 1, 1, 5))
        scale, size = g.const(np.float32(self.spatial_scale)), g.const(np.float32(self.group_size))
        start = g.Mul(steps.part(g, corners, 1, 0, 2), scale)
        end = g.Mul(g.Add(steps.part(g, corners, 1, 2, 4), g.const(np.float32(1))), scale)
        cell = g.Div(g.Max(g.Sub(end, start), g.const(np.float32(0.1))), size)
        start, cell = (g.Unsqueeze(value, g.ints([2])) for value in (start, cell))
        limit = g.Unsqueeze(g.Cast(g.Gather(space, g.ints([1, 0])), to=1), g.ints([1]))  # width, height
        places = np.arange(self.group_size, dtype=np.float32)

        def bound(rounding: Any, at: np.ndarray) -> str:
            inside = g.Max(rounding(g.Add(g.Mul(g.const(at), cell), start)), g.const(np.float32(0)))
            return g.Cast(g.Min(inside, limit), to=7)

        return bound(g.Floor, places), bound(g.Ceil, places + 1)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.caffe_psroi_pooling(x[0], F.reshape(x[1], (-1, 5)), self)
