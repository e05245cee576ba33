"""PriorBoxClustered: SSD's boxes with a list of widths and heights, from OpenVINO's toolbox."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.layers.base import Params, layer_type
from bridge.layers.prior_box import PriorBox, read_grid


@layer_type("PriorBoxClustered")
class PriorBoxClustered(PriorBox):
    """As PriorBox, with the boxes of each cell given by ``width`` and ``height`` in pixels.

    Attributes:
        width, height: The boxes of a cell, in pixels of the image.
        clip: Cut the boxes at the image's border.
        variance: One value, or one per corner.
        img: (height, width) of the image; none to take it from bottom 1.
        step: (height, width) of a cell in pixels; none to divide the image by the cells.
        offset: Where the centre of a cell is, in cells.

    Source: caffe.proto ``PriorBoxParameter``, prior_box_clustered_layer.cpp of OpenVINO's training_toolbox_caffe.
    """

    harmless = {"flip": "is for aspect ratios, of which this type has none"}

    width: tuple[float, ...] = ()
    height: tuple[float, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = read_grid(p)
        width, height = (p.read(side, tuple[float, ...], ()) for side in ("width", "height"))
        if not width or len(width) != len(height) or min(*width, *height) <= 0:
            raise p.fail(f"has {len(width)} width and {len(height)} height", expected="as many of both, all positive")
        return {**values, "width": width, "height": height}

    def sides(self) -> np.ndarray:
        return np.stack([self.width, self.height], axis=-1).astype(np.float32) / 2

    @property
    def _per_cell(self) -> int:
        return len(self.width)
