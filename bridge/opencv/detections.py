"""Detections as OpenCV's own layer puts them out: a fixed number of rows, zeros behind those that were found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from bridge.layers import boxes as steps
from bridge.layers.detection_output import DetectionOutput
from bridge.schema import Net, Shape

if TYPE_CHECKING:
    from bridge.layers.builders import OnnxBuilder


def with_padded_detections(net: Net) -> Net:
    """The net with :class:`PaddedDetections` in place of each DetectionOutput."""
    return net.replace(layers=tuple(_padded(layer) if isinstance(layer, DetectionOutput) else layer for layer in net))


def _padded(layer: DetectionOutput) -> DetectionOutput:
    return PaddedDetections(**{field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)})


class PaddedDetections(DetectionOutput):
    """The same rows, filled up with zeros to ``keep_top_k`` for each image of the batch: (1, 1, N x keep_top_k, 7).

    Where ``keep_top_k`` is -1 nothing is filled up, but for one row of zeros where nothing was found.

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

    def _listed(self, g: OnnxBuilder, table: str, stays: str, images: str) -> str:
        """The rows that stay, and rows of zeros behind them."""
        # a row of zeros at the end, which is always found
        table = g.Concat(table, g.const(np.zeros((1, 7), np.float32)), axis=0)
        found = g.NonZero(g.Concat(stays, g.const(np.ones(1, np.float32)), axis=0))
        rows = g.Gather(table, g.Reshape(found, g.ints([-1])), axis=0)
        if self.keep_top_k < 0:
            count = g.Max(g.Sub(steps.extent(g, rows, 0), g.ints([1])), g.ints([1]))
        else:
            count = g.Mul(images, g.ints([self.keep_top_k]))
            zeros = g.Expand(g.const(np.float32(0)), g.Concat(count, g.ints([7]), axis=0))
            rows = g.Concat(rows, zeros, axis=0)
        return g.Slice(rows, g.ints([0]), count, g.ints([0]))
