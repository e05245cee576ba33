"""DetectionOutput: from SSD's predictions to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bridge.layers import boxes as steps
from bridge.layers.base import CaffeLayer, Params, build_layer, layer_type
from bridge.schema import Layer, Shape, count, times
from bridge.schema.hooks import DetectionRows

if TYPE_CHECKING:
    from bridge.layers.builders import OnnxBuilder


@layer_type("DetectionOutput")
class DetectionOutput(CaffeLayer):
    """Rows (image, label, score, xmin, ymin, xmax, ymax) of the boxes that stay, as (1, 1, rows, 7).

    Bottoms: locations (N, boxes x classes that have their own x 4), scores (N, boxes x classes) and
    the priors of PriorBox (1, 2, boxes x 4). Per image and label: of the ``top_k`` best boxes with
    a score above ``confidence_threshold``, those that no better one overlaps by more than
    ``nms_threshold``; of all labels together the ``keep_top_k`` best. Rows are in order of image,
    label, score. Where nothing stays in the whole batch, there is one row (image, -1, ...) per image.

    RefineDet adds the scores (N, boxes x 2) and shifts (N, boxes x 4) of its first step: a box whose score of
    being an object is below ``objectness_score`` is background, and the shifts are applied to the priors first.

    Attributes:
        num_classes: Classes, the background included.
        share_location: One box for all classes.
        background_label_id: The class that is left out; -1 for none.
        code_type: What the locations mean, relative to a prior.
        variance_encoded_in_target: Locations are not multiplied by the priors' variances.
        keep_top_k, top_k: -1 for all.
        confidence_threshold: None for no lower bound.
        objectness_score: The least score of the first step.
        eta: Lowers a ``nms_threshold`` above 0.5 after each box; standard ONNX cannot.

    Source: caffe.proto ``DetectionOutputParameter``, detection_output_layer.cpp and bbox_util.cpp of SSD and of
    RefineDet; ONNX ``NonMaxSuppression``, ``TopK``.
    """

    adds_many = False
    chooses = True
    rounds_near_one = False
    message = "detection_output_param"
    enum_start = 1
    bottom_count = (3, 5)
    top_count = (1, 1)
    data_dependent: ClassVar[tuple[int, ...]] = (2,)

    num_classes: int
    share_location: bool = True
    background_label_id: int = 0
    code_type: Literal["CORNER", "CENTER_SIZE", "CORNER_SIZE"] = "CORNER"
    variance_encoded_in_target: bool = False
    keep_top_k: int = -1
    confidence_threshold: float | None = None
    nms_threshold: float = 0.3
    top_k: int = -1
    eta: float = 1.0
    objectness_score: float = 0.01

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        nms, defaults = p.inner("nms_param"), {"nms_threshold": 0.3, "top_k": -1, "eta": 1.0}
        values = super().read(p) | {key: nms.read(key, type(value), value) for key, value in defaults.items()}
        if values["num_classes"] < 1 or values["nms_threshold"] < 0 or not 0 < values["eta"] <= 1:
            raise p.fail("num_classes must be positive, nms_threshold not negative and eta in (0, 1]")
        return values

    def before_suppression(self) -> Layer | None:
        """The layer's boxes and scores, all of them: a DetectionBoxes whose tops are called after this one's."""
        definition = self.definition.copy()
        definition.set("type", "DetectionBoxes")
        definition.set("top", *(f"{self.tops[0]}_{part}" for part in ("boxes", "scores")))
        return build_layer(definition)

    @property
    def labels(self) -> list[int]:
        """The classes that are put out."""
        return [label for label in range(self.num_classes) if label != self.background_label_id]

    def detections(self, top: int) -> DetectionRows | None:
        least = -np.inf if self.confidence_threshold is None else self.confidence_threshold
        return DetectionRows(least, self.nms_threshold, self.keep_top_k)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        loc, conf, prior, *first = bottoms
        if len(prior) != 3 or prior[1] != 2 or prior[2] % 4:
            raise self.fail(f"the priors are {times(prior)}", expected="1 x 2 x a multiple of 4")
        boxes = prior[2] // 4
        own = 1 if self.share_location else self.num_classes
        if count(loc[1:]) != boxes * own * 4 or count(conf[1:]) != boxes * self.num_classes or loc[0] != conf[0]:
            raise self.fail(f"locations {times(loc)} and scores {times(conf)} do not fit {boxes} priors")
        if first and (len(first) != 2 or not self.share_location):
            raise self.fail(f"has {len(bottoms)} bottoms", expected="3, or RefineDet's 5 with share_location")
        if first and (count(first[0][1:]) != boxes * 2 or count(first[1][1:]) != boxes * 4):
            raise self.fail(
                f"the first step's scores {times(first[0])} and shifts {times(first[1])} do not fit {boxes} priors"
            )
        labels = self.num_classes - (0 <= self.background_label_id < self.num_classes)
        most = labels * _least(boxes, self.top_k)
        return ((1, 1, loc[0] * max(1, _least(most, self.keep_top_k)), 7),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> Any:
        if self.eta < 1 and self.nms_threshold > 0.5:
            return g.custom(self, *x, reason="eta is below 1")
        boxes, scores = self.boxes_and_scores(g, x)
        kept = self._kept(g, boxes, scores, g.shape(x[2]))
        return self._rows(g, boxes, kept, steps.extent(g, x[0], 0))

    def boxes_and_scores(self, g: OnnxBuilder, x: Sequence[str]) -> tuple[str, str]:
        """Boxes (N, boxes, 4), or (N, labels, boxes, 4) where each has its own, and scores (N, labels, boxes)."""
        labels = g.ints(self.labels)
        scores = g.Reshape(x[1], g.ints([0, -1, self.num_classes]))
        scores = g.Transpose(self._objects_only(g, scores, x[3]) if len(x) > 3 else scores, perm=(0, 2, 1))
        boxes = self._boxes(g, x)
        if not self.share_location:
            boxes = g.Gather(boxes, labels, axis=1)
        return boxes, g.Gather(scores, labels, axis=1)

    def _objects_only(self, g: OnnxBuilder, scores: str, first: str) -> str:
        """Scores (N, boxes, classes), those of boxes that the first step takes for background made 1, 0, 0 ..."""
        objects = steps.part(g, g.Reshape(first, g.ints([0, -1, 2])), -1, 1, 2)
        background = g.const(np.eye(1, self.num_classes, dtype=np.float32)[None])
        return str(g.Where(g.Less(objects, g.const(np.float32(self.objectness_score))), background, scores))

    def _boxes(self, g: OnnxBuilder, x: Sequence[str]) -> str:
        """Boxes with corners, (N, boxes, 4), or (N, classes, boxes, 4) where each has its own."""
        both = g.Reshape(steps.part(g, x[2], 0, 0, 1), g.ints([2, -1, 4]))
        prior, variance = (g.Gather(both, g.const(np.int64(i)), axis=0) for i in range(2))
        if len(x) > 3:  # the first step's shifts move the priors
            prior = self._decoded(g, g.Reshape(x[4], g.ints([0, -1, 4])), prior, variance)
        if self.share_location:
            return self._decoded(g, g.Reshape(x[0], g.ints([0, -1, 4])), prior, variance)
        loc = g.Transpose(g.Reshape(x[0], g.ints([0, -1, self.num_classes, 4])), perm=(0, 2, 1, 3))
        return self._decoded(g, loc, prior, variance)

    def _decoded(self, g: OnnxBuilder, loc: str, prior: str, variance: str) -> str:
        """Shifts (..., boxes, 4) applied to priors (..., boxes, 4)."""
        if not self.variance_encoded_in_target:
            loc = g.Mul(variance, loc)
        if self.code_type == "CORNER":
            return g.Add(prior, loc)
        low, high = (steps.part(g, prior, -1, i, i + 2) for i in (0, 2))
        size = g.Sub(high, low)
        if self.code_type == "CORNER_SIZE":
            return g.Add(prior, g.Mul(loc, g.Concat(size, size, axis=-1)))
        half = g.const(np.float32(0.5))
        centre = g.Add(g.Mul(steps.part(g, loc, -1, 0, 2), size), g.Mul(g.Add(low, high), half))
        reach = g.Mul(g.Mul(g.Exp(steps.part(g, loc, -1, 2, 4)), size), half)
        return g.Concat(g.Sub(centre, reach), g.Add(centre, reach), axis=-1)

    def to_numpy(self, *x: np.ndarray) -> list[np.ndarray]:
        images, scores, boxes = len(x[0]), self.scores_numpy(*x), self.boxes_numpy(*x)
        rows = [row for image in range(images) for row in self._rows_numpy(image, boxes[image], scores[image])]
        none = np.full((images, 7), -1, np.float32)
        none[:, 0] = np.arange(images)
        return [np.array(rows or none, np.float32).reshape(1, 1, -1, 7)]

    def scores_numpy(self, *x: np.ndarray) -> np.ndarray:
        """(N, boxes, classes)."""
        scores = x[1].reshape(len(x[0]), -1, self.num_classes)
        if len(x) > 3:
            background = x[3].reshape(len(x[0]), -1, 2)[..., 1] < np.float32(self.objectness_score)
            scores = np.where(background[..., None], np.eye(1, self.num_classes, dtype=np.float32), scores)
        return scores

    def boxes_numpy(self, *x: np.ndarray) -> np.ndarray:
        """(N, boxes, 4), or (N, boxes, classes, 4) where each class has its own."""
        prior, variance = x[2][0].reshape(2, -1, 4)
        if len(x) > 3:
            prior = self._decoded_numpy(x[4].reshape(len(x[0]), -1, 4), prior, variance)
        if self.share_location:
            return self._decoded_numpy(x[0].reshape(len(x[0]), -1, 4), prior, variance)
        own = x[0].reshape(len(x[0]), -1, self.num_classes, 4)
        return self._decoded_numpy(own, prior[:, None], variance[:, None])

    def _decoded_numpy(self, loc: np.ndarray, prior: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Shifts (..., 4) applied to priors (..., 4), float32."""
        moved: np.ndarray = loc if self.variance_encoded_in_target else variance * loc
        if self.code_type == "CORNER":
            near: np.ndarray = prior + moved
            return near
        low, high = prior[..., :2], prior[..., 2:]
        size = high - low
        if self.code_type == "CORNER_SIZE":
            scaled: np.ndarray = prior + moved * np.concatenate([size, size], axis=-1)
            return scaled
        centre = moved[..., :2] * size + (low + high) / np.float32(2)
        with np.errstate(over="ignore"):
            reach = np.exp(moved[..., 2:]) * size / np.float32(2)
        return np.concatenate([centre - reach, centre + reach], axis=-1)

    def _rows_numpy(self, image: int, boxes: np.ndarray, scores: np.ndarray) -> list[list[float]]:
        """The rows of one image, from boxes (boxes, [classes,] 4) and scores (boxes, classes)."""
        found: list[tuple[int, float, np.ndarray]] = []
        for label in self.labels:
            own, score = boxes if self.share_location else boxes[:, label], scores[:, label]
            least = -np.inf if self.confidence_threshold is None else np.float32(self.confidence_threshold)
            above = np.flatnonzero(score > least)
            order = above[steps.best_first(score[above], self.top_k)]
            kept = order[steps.apart(own[order], self.nms_threshold, self.eta)]
            found += [(label, float(score[place]), own[place]) for place in kept]
        best = steps.best_first(np.array([score for _, score, _ in found]), self.keep_top_k)
        return [[image, found[place][0], found[place][1], *found[place][2]] for place in sorted(best)]

    def _kept(self, g: OnnxBuilder, boxes: str, scores: str, priors: Any) -> str:
        """(N, labels, boxes): the scores of boxes that stay, LOWEST for the others."""
        if self.top_k >= 0:
            scores = steps.keep_best(g, scores, 2, self.top_k)
        if self.code_type != "CENTER_SIZE":  # a box turned inside out overlaps nothing
            low, high = (steps.part(g, boxes, -1, i, i + 2) for i in (0, 2))
            boxes = g.Concat(low, g.Max(low, high), axis=-1)
        lowest = float(steps.LOWEST_SCORE) if self.confidence_threshold is None else self.confidence_threshold
        if self.share_location:
            kept = steps.suppress(g, boxes, scores, self.nms_threshold, lowest)
        else:
            size = priors[2] // 4 if priors.fixed(2) else steps.extent(g, scores, 2)
            boxes, scores = _shaped(g, boxes, -1, size, 4), _shaped(g, scores, -1, 1, size)
            kept = steps.suppress(g, boxes, scores, self.nms_threshold, lowest)
            kept = _shaped(g, kept, -1, len(self.labels), size)
        if self.keep_top_k < 0:
            return str(kept)
        best = steps.keep_best(g, g.Flatten(kept, axis=1), 1, self.keep_top_k)
        return g.Reshape(best, g.Shape(kept))

    def _rows(self, g: OnnxBuilder, boxes: str, kept: str, images: str) -> str:
        limits = [limit for limit in (self.top_k, self.keep_top_k) if limit >= 0]
        values, places = steps.best(g, kept, 2, min(limits, default=-1))
        table = self._table(g, boxes, values, places, (images, steps.extent(g, kept, 2)))
        stays = g.Cast(g.Greater(g.Reshape(values, g.ints([-1])), g.const(steps.LOWEST_SCORE)), to=1)
        return g.Reshape(self._listed(g, table, stays, images), g.ints([1, 1, -1, 7]))

    def _table(self, g: OnnxBuilder, boxes: str, values: str, places: str, extents: tuple[str, str]) -> str:
        """(N x labels x M, 7): a row for each of the best boxes of each image and label, whether it stays or not."""
        images, size = extents
        shape, flat, column = g.Shape(values), g.ints([-1]), g.ints([-1, 1])
        image = g.Reshape(steps.counted(g, images), g.ints([-1, 1, 1]))
        first = image
        if not self.share_location:
            own = g.const(np.arange(len(self.labels), dtype=np.int64).reshape(1, -1, 1))
            first = g.Add(g.Mul(image, g.ints([len(self.labels)])), own)
        at = g.Reshape(g.Add(g.Mul(first, size), places), flat)
        labels = g.const(np.array(self.labels, np.float32).reshape(1, -1, 1))
        return g.Concat(
            g.Reshape(g.Expand(g.Cast(image, to=1), shape), column),
            g.Reshape(g.Expand(labels, shape), column),
            g.Reshape(values, column),
            g.Gather(g.Reshape(boxes, g.ints([-1, 4])), at, axis=0),
            axis=1,
        )

    def _listed(self, g: OnnxBuilder, table: str, stays: str, images: str) -> str:
        """The rows of the table that stay; where none does, a row (image, -1, ...) for each image. Never empty."""
        number = g.Unsqueeze(g.Cast(steps.counted(g, images), to=1), g.ints([1]))
        minus = g.Expand(g.const(np.float32(-1)), g.Concat(images, g.ints([6]), axis=0))
        return steps.listed(g, table, stays, g.Concat(number, minus, axis=1), images)


def _shaped(g: OnnxBuilder, x: str, *extents: int | str) -> str:
    """``x`` in another shape; an extent that is known when the model runs is a 1-D value of one number."""
    if not any(isinstance(extent, str) for extent in extents):
        return g.Reshape(x, g.ints([int(extent) for extent in extents]))
    parts = [extent if isinstance(extent, str) else g.ints([extent]) for extent in extents]
    return g.Reshape(x, g.Concat(*parts, axis=0))


def _least(number: int, limit: int) -> int:
    return number if limit < 0 else min(number, limit)
