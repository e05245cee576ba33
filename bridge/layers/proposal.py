"""Proposal: the regions that Faster R-CNN looks at, from the Python layer or from its C++ twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers import boxes as steps
from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.layers.param_str import read_param_str
from bridge.schema import Shape, times
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import OnnxBuilder

_PYTHON = "rpn.proposal_layer.ProposalLayer"
_NAMES = {
    "feat_stride": "feat_stride", "base_size": "base_size", "min_size": "min_size", "nms_thresh": "nms_thresh",
    "pre_nms_topN": "pre_nms_topn", "post_nms_topN": "post_nms_topn",
    "scales": "scale", "ratios": "ratio", "anchor_scales": "scale", "anchor_ratios": "ratio",
}  # fmt: skip
"""Names in the Python layer's ``param_str``."""


@layer_type("Proposal", _PYTHON)
class Proposal(CaffeLayer):
    """Rows (image, x1, y1, x2, y2) of the best regions, best first, and as a second top their scores.

    Bottoms: scores (N, 2 x anchors, H, W), the second half of which counts, shifts (N, 4 x anchors, H, W),
    and the image's (height, width, scale). Anchors of each ``ratio`` and ``scale`` at every cell are
    shifted, cut at the border, sorted out below ``min_size`` times scale, of the ``pre_nms_topn`` best the
    overlapping ones dropped, and the ``post_nms_topn`` best kept. What is too small is dropped by the
    Python layer (python_param, with numbers in ``param_str``), and by the C++ layer given the score 0.

    Source: caffe.proto ``ProposalParameter``, proposal_layer.py of py-faster-rcnn, proposal_layer.cpp of PVANet;
    ONNX ``NonMaxSuppression``, ``TopK``; Ren et al., Faster R-CNN, 2015.
    """

    adds_many = False
    chooses = True
    rounds_near_one = False
    message = "proposal_param"
    bottom_count = (3, 3)
    top_count = (1, 2)
    data_dependent = (0,)

    feat_stride: int = 16
    base_size: int = 16
    min_size: int = 16
    ratio: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    pre_nms_topn: int = 6000
    post_nms_topn: int = 300
    nms_thresh: float = 0.7

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        python = p.other("python_param")
        if "layer" in python:
            read_param_str(p, _NAMES)
        values = super().read(p)
        if "layer" in python:
            values["ratio"], values["scale"] = values["ratio"] or (0.5, 1.0, 2.0), values["scale"] or (8.0, 16.0, 32.0)
        if not values["ratio"] or not values["scale"] or min(*values["ratio"], *values["scale"]) <= 0:
            raise p.fail("needs a ratio and a scale at least, all positive")
        return values

    @property
    def python(self) -> bool:
        """Whether this is the Python layer."""
        return self.type == "Python"

    def anchors(self) -> np.ndarray:
        """(anchors, 4) float32: x1, y1, x2, y2 at the first cell."""
        ratio = np.repeat(np.array(self.ratio), len(self.scale))
        width = self._rounded(np.sqrt(self.base_size**2 / ratio))
        size = np.stack([width, self._rounded(width * ratio)], axis=1) * np.tile(self.scale, len(self.ratio))[:, None]
        centre = 0.5 * (self.base_size - 1)
        return np.concatenate([centre - 0.5 * (size - 1), centre + 0.5 * (size - 1)], axis=1).astype(np.float32)

    def _rounded(self, x: np.ndarray) -> np.ndarray:
        return np.round(x) if self.python else np.floor(x + 0.5)

    def fill(self, bottom: int) -> Fill | None:
        return _image_size if bottom == 2 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        scores, shifts, _ = bottoms
        count = len(self.anchors())
        if len(scores) != 4 or shifts != (scores[0], 4 * count, *scores[2:]) or scores[1] != 2 * count:
            raise self.fail(f"scores {times(scores)} and shifts {times(shifts)} do not fit {count} anchors")
        if self.python and scores[0] != 1:
            raise self.fail(f"{scores[0]} images", expected="1")
        limits = [n for n in (self.pre_nms_topn, self.post_nms_topn) if n > 0]
        rows = scores[0] * min(count * scores[2] * scores[3], *limits)
        return ((rows, 5), (rows, 1) if self.python else (rows,))[: len(self.tops)]

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        count = len(self.anchors())
        boxes, large = self._boxes(g, x[1], g.Reshape(x[2], g.ints([-1])), g.shape(x[2])[-1])
        scores = g.Transpose(steps.part(g, x[0], 1, count, 2 * count), perm=(0, 2, 3, 1))
        scores = g.Reshape(scores, g.ints([0, 1, -1]))
        scores = g.Where(large, scores, g.const(steps.LOWEST_SCORE if self.python else np.float32(0)))
        if self.pre_nms_topn > 0:
            scores = steps.keep_best(g, scores, 2, self.pre_nms_topn)
        one = g.const(np.array([0, 0, 1, 1], np.float32))  # corners belong to the box
        kept = steps.suppress(g, g.Add(boxes, one), scores, self.nms_thresh, float(steps.LOWEST_SCORE))
        values, places = steps.best(g, kept, 2, self.post_nms_topn if self.post_nms_topn > 0 else -1)
        found = steps.found(g, values)
        image = steps.part(g, found, 1, 0, 1)
        place = g.Unsqueeze(g.GatherND(places, found), g.ints([1]))
        rois = g.Concat(g.Cast(image, to=1), g.GatherND(boxes, g.Concat(image, place, axis=1)), axis=1)
        score = g.GatherND(values, found)
        return [rois, g.Unsqueeze(score, g.ints([1])) if self.python else score][: len(self.tops)]

    def to_numpy(self, *x: np.ndarray) -> list[np.ndarray]:
        count, info = len(self.anchors()), x[2].reshape(-1)
        boxes, large = self._boxes_numpy(x[1], info)
        scores = x[0][:, count:].transpose(0, 2, 3, 1).reshape(len(x[0]), -1)
        rows, kept_scores = [np.zeros((0, 5), np.float32)], [np.zeros(0, np.float32)]
        for image, score in enumerate(scores):
            places = np.flatnonzero(large[image]) if self.python else np.arange(len(score))
            score = score if self.python else np.where(large[image], score, np.float32(0))
            order = places[steps.best_first(score[places], self.pre_nms_topn if self.pre_nms_topn > 0 else -1)]
            grown = boxes[image][order] + np.array([0, 0, 1, 1], np.float32)  # corners belong to the box
            most = self.post_nms_topn if self.post_nms_topn > 0 else -1
            kept = order[steps.apart(grown, self.nms_thresh, most=most)]
            rows.append(np.insert(boxes[image][kept], 0, image, axis=1))
            kept_scores.append(score[kept])
        score = np.concatenate(kept_scores)
        return [np.concatenate(rows), score[:, None] if self.python else score][: len(self.tops)]

    def _boxes_numpy(self, shifts: np.ndarray, info: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, cells x anchors, 4), and whether they are large enough, (N, cells x anchors)."""
        anchors, (height, width) = self.anchors(), shifts.shape[2:]
        moved = shifts.transpose(0, 2, 3, 1).reshape(len(shifts), height, width, len(anchors), 4)
        size = anchors[:, 2:] - anchors[:, :2] + 1
        cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        middle = cells[:, :, None] * np.float32(self.feat_stride) + anchors[:, :2] + size / 2
        centre = moved[..., :2] * size + middle
        with np.errstate(over="ignore"):
            reach = np.exp(moved[..., 2:]) * size / np.float32(2)
        last = info[[1, 0]] - 1
        low, high = (np.maximum(np.minimum(corner, last), 0) for corner in (centre - reach, centre + reach))
        factor = info[[3, 2]] if len(info) > 3 and not self.python else info[[2, 2]]
        large = (high - low + 1 >= factor * np.float32(self.min_size)).all(axis=-1)
        boxes = np.concatenate([low, high], axis=-1)
        return boxes.reshape(len(shifts), -1, 4), large.reshape(len(shifts), -1)

    def _boxes(self, g: OnnxBuilder, shifts: str, info: str, numbers: int) -> tuple[str, str]:
        """Boxes (N, cells x anchors, 4), and whether they are large enough, (N, 1, cells x anchors)."""
        anchors, one, half = self.anchors(), g.const(np.float32(1)), g.const(np.float32(0.5))
        size = g.const(anchors[:, 2:] - anchors[:, :2] + 1)
        moved = g.Reshape(g.Transpose(shifts, perm=(0, 2, 3, 1)), g.ints([0, -1, len(anchors), 4]))
        centre = g.Add(g.Mul(steps.part(g, moved, -1, 0, 2), size), self._centres(g, shifts, anchors))
        reach = g.Mul(g.Mul(g.Exp(steps.part(g, moved, -1, 2, 4)), size), half)
        last = g.Sub(g.Gather(info, g.ints([1, 0])), one)
        corners = (g.Sub(centre, reach), g.Add(centre, reach))
        low, high = (g.Max(g.Min(corner, last), g.const(np.float32(0))) for corner in corners)
        factor = g.Gather(info, g.ints([3, 2] if numbers > 3 and not self.python else [2, 2]))
        least = g.Mul(factor, g.const(np.float32(self.min_size)))
        fits = g.Cast(g.GreaterOrEqual(g.Add(g.Sub(high, low), one), least), to=1)
        both = g.Cast(g.Reshape(g.reduce("Min", fits, [3]), g.ints([0, 1, -1])), to=9)
        return g.Reshape(g.Concat(low, high, axis=3), g.ints([0, -1, 4])), both

    def _centres(self, g: OnnxBuilder, shifts: str, anchors: np.ndarray) -> str:
        """(cells, anchors, 2) for x and y."""
        first, shape = anchors[:, :2] + (anchors[:, 2:] - anchors[:, :2] + 1) / 2, g.shape(shifts)
        stride = np.float32(self.feat_stride)
        if shape.fixed(2) and shape.fixed(3):
            rows, columns = np.divmod(np.arange(shape[2] * shape[3]), shape[3])
            return g.const(np.stack([columns, rows], axis=1)[:, None].astype(np.float32) * stride + first)
        places = [steps.counted(g, steps.extent(g, shifts, axis)) for axis in (2, 3)]
        space = g.Slice(g.Shape(shifts), g.ints([2]), g.ints([4]))
        down, across = (
            g.Unsqueeze(g.Expand(g.Reshape(place, g.ints(side)), space), g.ints([2]))
            for place, side in zip(places, ([-1, 1], [1, -1]), strict=True)
        )
        cells = g.Cast(g.Reshape(g.Concat(across, down, axis=2), g.ints([-1, 1, 2])), to=1)
        return g.Add(g.Mul(cells, g.const(stride)), g.const(first))


def _image_size(rng: np.random.Generator, shape: Shape, shapes: Sequence[Shape | None]) -> np.ndarray:
    """Height, width and scale of an image."""
    sizes = np.ones(shape)
    sizes[..., :2] = 224
    return sizes
