"""DetectionBoxes: all boxes and scores of a DetectionOutput, before any is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.layers.base import layer_type
from bridge.layers.detection_output import DetectionOutput
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import OnnxBuilder


@layer_type("DetectionBoxes")
class DetectionBoxes(DetectionOutput):
    """The first half of DetectionOutput, for runtimes without ``NonMaxSuppression``; no Caffe has it.

    Bottoms and parameters are those of DetectionOutput. Tops: the corners of each box as parts of the image,
    (N, boxes, 4), or (N, labels, boxes, 4) where each label has its own; and the scores, (N, labels, boxes), without
    the background's. docs/export.md has the lines of NumPy that choose among them.

    Source: as of :class:`bridge.layers.detection_output.DetectionOutput`.
    """

    chooses = False
    top_count = (2, 2)
    data_dependent = ()

    def detections(self, top: int) -> None:
        """None of its tops has a row for each detection."""

    def before_suppression(self) -> None:
        """It suppresses nothing."""

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        super().infer(*bottoms)
        images, boxes, labels = bottoms[0][0], bottoms[2][2] // 4, len(self.labels)
        own = (boxes, 4) if self.share_location else (labels, boxes, 4)
        return (images, *own), (images, labels, boxes)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        return list(self.boxes_and_scores(g, x))

    def to_numpy(self, *x: np.ndarray) -> list[np.ndarray]:
        boxes, scores = self.boxes_numpy(*x), self.scores_numpy(*x)[..., self.labels]
        if not self.share_location:
            boxes = boxes[:, :, self.labels].transpose(0, 2, 1, 3)
        return [boxes, scores.transpose(0, 2, 1)]
