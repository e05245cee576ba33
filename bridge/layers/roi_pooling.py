"""ROIPooling: the maximum in each cell of a grid laid over each region, as Fast R-CNN has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.layers.boxes import part, random_regions
from bridge.schema import Shape, count, times
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_NEW_OPSET = 22
"""From here on MaxRoiPool has bfloat16, and ONNX Runtime (1.32) no kernel for it."""


@layer_type("ROIPooling")
class ROIPooling(CaffeLayer):
    """The top is (rows, C, pooled_h, pooled_w), for rows (image, x1, y1, x2, y2) in bottom 1.

    ``spatial_scale`` takes the corners to bottom 0, where they are rounded to whole pixels that belong
    to the region. Cells overlap where they share a pixel, and those that have none are 0.

    With a ``pad_ratio`` each region first grows by that part of its extent, on every side.

    Source: caffe.proto ``ROIPoolingParameter``, roi_pooling_layer.cpp of Fast R-CNN, and of MS-CNN for ``pad_ratio``;
    ONNX ``MaxRoiPool``.
    """

    adds_many = False
    rounds_near_one = False
    message = "roi_pooling_param"
    bottom_count = (2, 2)
    top_count = (1, 1)

    pooled_h: int = 0
    pooled_w: int = 0
    spatial_scale: float = 1.0
    pad_ratio: float = 0.0

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if min(values["pooled_h"], values["pooled_w"]) < 1:
            raise p.fail("pooled_h and pooled_w must be 1 or more")
        return values

    def fill(self, bottom: int) -> Fill | None:
        return random_regions if bottom == 1 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        x, rois = bottoms
        if len(x) != 4 or count(rois[1:]) != 5:
            raise self.fail(f"the inputs are {times(x)} and {times(rois)}", expected="4 axes and rows of 5")
        return ((rois[0], x[1], self.pooled_h, self.pooled_w),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if g.opset >= _NEW_OPSET:
            raise UnsupportedLayerError(
                f"ONNX Runtime has no MaxRoiPool of opset {g.opset}, only up to {_NEW_OPSET - 1}", subject=self.label
            )
        rois = x[1] if len(g.shape(x[1])) == 2 else g.Reshape(x[1], g.ints([-1, 5]))
        grid = (self.pooled_h, self.pooled_w)
        if self.pad_ratio:
            image, low, high = (part(g, rois, 1, *ends) for ends in ((0, 1), (1, 3), (3, 5)))
            size = g.Add(g.Sub(high, low), g.const(np.float32(1)))
            more = g.Mul(size, g.const(np.float32(self.pad_ratio)))
            rois = g.Concat(image, g.Sub(low, more), g.Add(high, more), axis=1)
        return g.MaxRoiPool(x[0], rois, pooled_shape=grid, spatial_scale=self.spatial_scale)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        rois = F.reshape(x[1], (-1, 5))
        if self.pad_ratio:
            more = (rois[:, 3:] - rois[:, 1:3] + 1) * self.pad_ratio
            rois = F.concat([rois[:, :1], rois[:, 1:3] - more, rois[:, 3:] + more], axis=1)
        return F.caffe_roi_pooling(x[0], rois, (self.pooled_h, self.pooled_w), self.spatial_scale)
