"""Detections as OpenCV's own layer puts them out: a fixed number of rows, zeros behind those that were found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bridge.layers import boxes as steps
from bridge.layers.detection_output import DetectionOutput
from bridge.schema import Net, Shape

_TINY = np.float32(1e-30)
"""A score that is above 0 and below every threshold that is."""


def with_padded_detections(net: Net) -> Net:
    """The net with :class:`PaddedDetections` in place of each DetectionOutput."""
    return net.replace(layers=tuple(_padded(layer) if isinstance(layer, DetectionOutput) else layer for layer in net))


def _padded(layer: DetectionOutput) -> DetectionOutput:
    return PaddedDetections(**{field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)})


class PaddedDetections(DetectionOutput):
    """The same rows, filled up with zeros to ``keep_top_k`` for each image of the batch: (1, 1, N x keep_top_k, 7).

    Where ``keep_top_k`` is -1 nothing is filled up, but for one row of zeros where nothing was found. No value in
    between is ever empty: OpenCV 5 does not survive that.

    Source: OpenCV detection_output_layer.cpp.
    """

    @property
    def data_dependent(self) -> tuple[int, ...]:  # type: ignore[override]
        """The number of rows depends on values only where it has no limit."""
        return (2,) if self.keep_top_k < 0 else ()

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        """See :meth:`bridge.schema.Layer.infer`."""
        (shape,) = super().infer(*bottoms)
        return ((1, 1, bottoms[0][0] * self.keep_top_k, 7) if self.keep_top_k >= 0 else shape,)

    def _kept(self, g: Any, boxes: str, scores: str, priors: Any) -> str:
        """Scores up to the threshold are left out behind the suppression, so that this has something to keep.

        A box suppresses only those with lower scores, so the result is the same.
        """
        threshold = self.confidence_threshold
        if threshold is None or threshold < 0:
            return super()._kept(g, boxes, scores, priors)
        loose = dataclasses.replace(self, confidence_threshold=0.0)
        scores = g.Max(scores, g.const(_TINY))
        kept = DetectionOutput._kept(loose, g, boxes, scores, priors)
        return str(g.Where(g.Greater(kept, g.const(np.float32(threshold))), kept, g.const(steps.LOWEST_SCORE)))

    def _rows(self, g: Any, boxes: str, kept: str, images: str) -> str:
        limits = [limit for limit in (self.top_k, self.keep_top_k) if limit >= 0]
        values, places = steps.best(g, kept, 2, min(limits, default=-1))
        table = self._table(g, boxes, values, places, (images, steps.extent(g, kept, 2)))
        valid = g.Cast(g.Greater(g.Reshape(values, g.ints([-1])), g.const(steps.LOWEST_SCORE)), to=1)
        # a row of zeros at the end, which is always found
        table = g.Concat(table, g.const(np.zeros((1, 7), np.float32)), axis=0)
        found = g.NonZero(g.Concat(valid, g.const(np.ones(1, np.float32)), axis=0))
        rows = g.Gather(table, g.Reshape(found, g.ints([-1])), axis=0)
        if self.keep_top_k < 0:
            count = g.Max(g.Sub(steps.extent(g, rows, 0), g.ints([1])), g.ints([1]))
        else:
            count = g.Mul(images, g.ints([self.keep_top_k]))
            zeros = g.Expand(g.const(np.float32(0)), g.Concat(count, g.ints([7]), axis=0))
            rows = g.Concat(rows, zeros, axis=0)
        return str(g.Reshape(g.Slice(rows, g.ints([0]), count, g.ints([0])), g.ints([1, 1, -1, 7])))

    def _table(self, g: Any, boxes: str, values: str, places: str, extents: tuple[str, str]) -> str:
        """(N x labels x M, 7): a row for each of the best boxes of each image and label, whether it stays or not."""
        images, size = extents
        shape = g.Shape(values)
        flat, column = g.ints([-1]), g.ints([-1, 1])
        image = g.Reshape(steps.counted(g, images), g.ints([-1, 1, 1]))
        labels = np.array(self.labels, np.float32).reshape(1, -1, 1)
        first = image
        if not self.share_location:
            places_of = g.const(np.arange(len(self.labels), dtype=np.int64).reshape(1, -1, 1))
            first = g.Add(g.Mul(image, g.ints([len(self.labels)])), places_of)
        at = g.Add(g.Mul(first, size), places)
        return str(
            g.Concat(
                g.Reshape(g.Expand(g.Cast(image, to=1), shape), column),
                g.Reshape(g.Expand(g.const(labels), shape), column),
                g.Reshape(values, column),
                g.Gather(g.Reshape(boxes, g.ints([-1, 4])), g.Reshape(at, flat), axis=0),
                axis=1,
            )
        )
