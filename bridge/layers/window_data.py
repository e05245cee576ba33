"""WindowData: windows of images, for detectors."""

from __future__ import annotations

from bridge.layers.base import layer_type
from bridge.layers.data_source import DataSource, square
from bridge.schema.hooks import PartialShape


@layer_type("WindowData")
class WindowData(DataSource):
    """Batches of windows cut from images, some on objects and some beside them, as R-CNN trains.

    Attributes:
        source: The list of images and windows.
        batch_size: Windows per batch.
        fg_threshold, bg_threshold: Overlap from which a window is an object, and below which it is none.
        fg_fraction: Part of the batch that is objects.
        context_pad: Pixels of surroundings.
        crop_mode: ``warp`` or ``square``.
        root_folder: Put in front of each path.

    Source: caffe.proto ``WindowDataParameter``, window_data_layer.cpp.
    """

    message = "window_data_param"

    source: str = ""
    batch_size: int = 0
    crop_size: int = 0
    fg_threshold: float = 0.5
    bg_threshold: float = 0.5
    fg_fraction: float = 0.25
    context_pad: int = 0
    crop_mode: str = "warp"
    root_folder: str = ""

    def batch(self) -> PartialShape | None:
        return square(self.batch_size, 3, self.transform.crop_size or self.crop_size)
