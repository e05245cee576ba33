"""YoloDetectionOutput and Yolov3DetectionOutput: from YOLO's predictions to boxes, as MobileNet-YOLO has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers import boxes as steps
from bridge.layers.base import MANY, CaffeLayer, Params, layer_type
from bridge.schema import Shape, times
from bridge.schema.hooks import DetectionRows

if TYPE_CHECKING:
    from bridge.layers.builders import OnnxBuilder


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class YoloOutput(CaffeLayer):
    """What both versions share: cells of boxes in, rows (0, label, score, xmin, ymin, xmax, ymax) out.

    Each bottom is (1, boxes x (5 + classes), H, W): for each box of a cell x, y, width, height, whether there is an
    object, and a score for each class. Of boxes that overlap, whatever their classes are, only the best stays. Rows
    are in order of score, as (1, 1, rows, 7); where nothing stays there is one row (0, -1, ...). Labels start at 1.

    Attributes:
        num_classes: Classes.
        num_box: Boxes per cell.
        confidence_threshold: The least score.
        nms_threshold: Boxes that overlap a better one by this much, as intersection over union, are dropped.
        biases: Width and height of each anchor.

    Source: yolo_detection_output_layer.cpp and yolov3_detection_output_layer.cpp of MobileNet-YOLO; ONNX
    ``NonMaxSuppression``.
    """

    adds_many = False
    chooses = True
    rounds_near_one = False
    top_count = (1, 1)
    data_dependent = (2,)

    num_classes: int = 20
    num_box: int = 5
    confidence_threshold: float = 0.01
    nms_threshold: float = 0.45
    biases: tuple[float, ...] = ()

    def detections(self, top: int) -> DetectionRows:
        return DetectionRows(self.confidence_threshold, self.nms_threshold, across_labels=True)

    def places(self, bottoms: tuple[Shape, ...]) -> int:
        """How many boxes there are in all bottoms."""
        parts = self.num_box * (5 + self.num_classes)
        for bottom in bottoms:
            if len(bottom) != 4 or bottom[0] != 1 or bottom[1] != parts:
                raise self.fail(f"an input is {times(bottom)}", expected=f"1 x {parts} x height x width")
        return sum(self.num_box * bottom[2] * bottom[3] for bottom in bottoms)

    def cells(self, g: OnnxBuilder, x: str) -> tuple[str, Shape]:
        """(boxes, 5 + classes, H, W) of a bottom, and (H, W)."""
        height, width = g.shape(x)[2:]
        return g.Reshape(x, g.ints([self.num_box, 5 + self.num_classes, height, width])), (height, width)

    def corners(self, g: OnnxBuilder, cells: str, space: Shape, anchors: np.ndarray) -> str:
        """(boxes x H x W, 4): xmin, ymin, xmax, ymax, as parts of the image.

        Args:
            g: The builder.
            cells: (boxes, 5 + classes, H, W).
            space: (H, W).
            anchors: (boxes, 2): width and height, as parts of the image.
        """
        height, width = space
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))[None].astype(np.float32)
        size = np.array([width, height], np.float32).reshape(1, 2, 1, 1)
        centre = g.Div(g.Add(g.Sigmoid(steps.part(g, cells, 1, 0, 2)), g.const(grid)), g.const(size))
        reach = g.Mul(g.Exp(steps.part(g, cells, 1, 2, 4)), g.const((anchors / 2).astype(np.float32)[:, :, None, None]))
        both = g.Concat(g.Sub(centre, reach), g.Add(centre, reach), axis=1)
        return g.Reshape(g.Transpose(both, perm=(0, 2, 3, 1)), g.ints([-1, 4]))

    def cells_numpy(self, x: np.ndarray) -> np.ndarray:
        """(boxes, 5 + classes, H, W) of a bottom."""
        return x.reshape(self.num_box, 5 + self.num_classes, *x.shape[2:])

    def corners_numpy(self, cells: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        """As :meth:`corners`."""
        height, width = cells.shape[2:]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
        size = np.array([width, height], np.float32).reshape(2, 1, 1)
        centre = (_sigmoid(cells[:, :2]) + grid) / size
        with np.errstate(over="ignore"):
            reach = np.exp(cells[:, 2:4]) * (anchors / 2).astype(np.float32)[:, :, None, None]
        return np.concatenate([centre - reach, centre + reach], axis=1).transpose(0, 2, 3, 1).reshape(-1, 4)

    def rows_numpy(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """As :meth:`rows`."""
        order = steps.best_first(scores)
        kept = order[steps.apart(boxes[order], self._limit)]
        rows = [[0, labels[place], scores[place], *boxes[place]] for place in kept]
        return np.array(rows or [[0, -1, -1, -1, -1, -1, -1]], np.float32).reshape(1, 1, -1, 7)

    @property
    def _limit(self) -> float:
        """The overlap that is allowed: an equal one is too much already."""
        return float(np.nextafter(np.float32(self.nms_threshold), np.float32(0)))

    def rows(self, g: OnnxBuilder, boxes: str, labels: str, scores: str, lowest: float) -> str:
        """The rows of boxes (P, 4) with labels (P) and scores (P), all of one image; of scores above ``lowest``."""
        batch = g.Reshape(scores, g.ints([1, 1, -1]))
        kept = steps.suppress(g, g.Reshape(boxes, g.ints([1, -1, 4])), batch, self._limit, lowest)
        values, places = steps.best(g, g.Reshape(kept, g.ints([-1])), 0, -1)
        label, score = (g.Reshape(part, g.ints([-1, 1])) for part in (g.Gather(labels, places), values))
        table = g.Concat(g.Mul(label, g.const(np.float32(0))), label, score, g.Gather(boxes, places), axis=1)
        stays = g.Cast(g.Greater(values, g.const(steps.LOWEST_SCORE)), to=1)
        none = g.const(np.array([[0, -1, -1, -1, -1, -1, -1]], np.float32))
        return g.Reshape(steps.listed(g, table, stays, none, g.ints([1])), g.ints([1, 1, -1, 7]))


@layer_type("Yolov3DetectionOutput")
class Yolov3DetectionOutput(YoloOutput):
    """YOLO v3's boxes: of each box, every class whose score is above the threshold gives a row of its own.

    A score is the sigmoid of the class times that of the object. See :class:`YoloOutput` for bottoms and top.

    Attributes:
        anchors_scale: For each bottom, how many pixels of the image a cell has.
        mask_group_num: How many bottoms there are.
        mask: For each bottom ``num_box`` numbers of anchors.

    Source: caffe.proto ``Yolov3DetectionOutputParameter``, yolov3_detection_output_layer.cpp of MobileNet-YOLO.
    """

    message = "yolov3_detection_output_param"
    bottom_count = (1, MANY)

    num_box: int = 3
    anchors_scale: tuple[int, ...] = ()
    mask_group_num: int = 2
    mask: tuple[int, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        groups, boxes = values["mask_group_num"], values["num_box"]
        if p.read("gaussian_box", bool, False):
            raise p.fail("gaussian_box has four more numbers for each box, which are not computed here")
        if len(values["mask"]) != groups * boxes or len(values["anchors_scale"]) != groups:
            raise p.fail(f"has {len(values['mask'])} mask and {len(values['anchors_scale'])} anchors_scale",
                         expected=f"{boxes} and 1 for each of {groups} bottoms")  # fmt: skip
        if max(values["mask"], default=0) >= len(values["biases"]) // 2:
            raise p.fail(f"mask names anchor {max(values['mask'])} of {len(values['biases']) // 2}")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms) != self.mask_group_num:
            raise self.fail(f"has {len(bottoms)} bottoms", expected=f"{self.mask_group_num}, its mask_group_num")
        return ((1, 1, self.places(bottoms) * self.num_classes, 7),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        boxes, scores = [], []
        for place, bottom in enumerate(x):
            cells, space = self.cells(g, bottom)
            boxes.append(self.corners(g, cells, space, self._anchors(place, space)))
            parts = g.Sigmoid(steps.part(g, cells, 1, 4, 5 + self.num_classes))
            score = g.Mul(steps.part(g, parts, 1, 0, 1), steps.part(g, parts, 1, 1, 1 + self.num_classes))
            scores.append(g.Reshape(g.Transpose(score, perm=(0, 2, 3, 1)), g.ints([-1, self.num_classes])))
        every, score = _joined(g, boxes), _joined(g, scores)
        flat = g.Reshape(score, g.ints([-1]))
        above = g.Cast(g.Greater(flat, g.const(np.float32(self.confidence_threshold))), to=g.FLOAT)
        # One more place, of no box and of the lowest score, is always found: OpenCV 5 dies of an empty index.
        found = g.Reshape(g.NonZero(g.Concat(above, g.const(np.ones(1, np.float32)), axis=0)), g.ints([-1]))
        classes = g.const(np.int64(self.num_classes))
        box = g.Div(found, classes)
        labels = g.Add(g.Cast(g.Sub(found, g.Mul(box, classes)), to=g.FLOAT), g.const(np.float32(1)))
        every = g.Concat(every, g.const(np.zeros((1, 4), np.float32)), axis=0)
        values = g.Concat(flat, g.const(np.array([steps.LOWEST_SCORE])), axis=0)
        return self.rows(g, g.Gather(every, box), labels, g.Gather(values, found), self.confidence_threshold)

    def _anchors(self, place: int, space: Shape) -> np.ndarray:
        """(boxes, 2): width and height of a bottom's anchors, as parts of the image."""
        sides = np.array(self.biases, np.float64).reshape(-1, 2)
        chosen = sides[list(self.mask[place * self.num_box : (place + 1) * self.num_box])]
        parts: np.ndarray = chosen / (np.array(space[::-1]) * self.anchors_scale[place])
        return parts

    def to_numpy(self, *x: np.ndarray) -> list[np.ndarray]:
        boxes, scores = [], []
        for place, bottom in enumerate(x):
            cells = self.cells_numpy(bottom)
            boxes.append(self.corners_numpy(cells, self._anchors(place, bottom.shape[2:])))
            parts = _sigmoid(cells[:, 4:])
            scores.append((parts[:, :1] * parts[:, 1:]).transpose(0, 2, 3, 1).reshape(-1, self.num_classes))
        every, score = np.concatenate(boxes), np.concatenate(scores)
        box, label = np.nonzero(score > np.float32(self.confidence_threshold))
        return [self.rows_numpy(every[box], label + 1, score[box, label])]


@layer_type("YoloDetectionOutput")
class YoloDetectionOutput(YoloOutput):
    """YOLO v2's boxes: each box has the class of the greatest probability.

    A score is the softmax of the classes' scores at that class, times the sigmoid of the object's. See
    :class:`YoloOutput` for bottoms and top.

    Attributes:
        coords: Numbers of a box, 4.
        side: The extent of the grid; that of the bottoms counts.

    Source: caffe.proto ``YoloDetectionOutputParameter``, yolo_detection_output_layer.cpp of MobileNet-YOLO.
    """

    message = "yolo_detection_output_param"
    harmless = {"side": "is the extent of the grid, which the bottom tells"}
    bottom_count = (1, 2)

    num_box: int = 5
    coords: int = 4

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["coords"] != 4 or len(values["biases"]) < 2 * values["num_box"]:
            raise p.fail(f"has {values['coords']} coords and {len(values['biases'])} biases",
                         expected=f"4 and {2 * values['num_box']}")  # fmt: skip
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if any(len(bottom) == 4 and bottom[2] != bottom[3] for bottom in bottoms):
            raise self.fail("a grid of different height and width is read beside its cells")
        return ((1, 1, self.places(bottoms), 7),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        boxes, scores, labels = [], [], []
        for bottom in x:
            cells, space = self.cells(g, bottom)
            boxes.append(self.corners(g, cells, space, self._anchors(space)))
            classes = g.Softmax(steps.part(g, cells, 1, 5, 5 + self.num_classes), axis=1)
            score = g.Mul(g.Sigmoid(steps.part(g, cells, 1, 4, 5)), g.reduce("Max", classes, [1]))
            scores.append(g.Reshape(score, g.ints([-1])))
            labels.append(g.Reshape(g.ArgMax(classes, axis=1), g.ints([-1])))
        every, score, label = (_joined(g, parts) for parts in (boxes, scores, labels))
        lowest = float(np.nextafter(np.float32(self.confidence_threshold), np.float32(-np.inf)))
        return self.rows(g, every, g.Add(g.Cast(label, to=g.FLOAT), g.const(np.float32(1))), score, lowest)

    def _anchors(self, space: Shape) -> np.ndarray:
        """(boxes, 2): width and height of the anchors, as parts of the image."""
        parts: np.ndarray = np.array(self.biases[: 2 * self.num_box]).reshape(-1, 2) / np.array(space[::-1])
        return parts

    def to_numpy(self, *x: np.ndarray) -> list[np.ndarray]:
        boxes, scores, labels = [], [], []
        for bottom in x:
            cells = self.cells_numpy(bottom)
            boxes.append(self.corners_numpy(cells, self._anchors(bottom.shape[2:])))
            powers = np.exp(cells[:, 5:] - cells[:, 5:].max(axis=1, keepdims=True))
            classes = powers / powers.sum(axis=1, keepdims=True)
            scores.append((_sigmoid(cells[:, 4]) * classes.max(axis=1)).reshape(-1))
            labels.append(classes.argmax(axis=1).reshape(-1))
        every, score, label = (np.concatenate(parts) for parts in (boxes, scores, labels))
        above = score >= np.float32(self.confidence_threshold)
        return [self.rows_numpy(every[above], label[above] + 1, score[above])]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        found: np.ndarray = 1 / (1 + np.exp(-x))
    return found


def _joined(g: OnnxBuilder, parts: Sequence[str]) -> str:
    return g.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]
