"""Reduction: the trailing axes to one number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.layers.base import CaffeLayer, canonical_axis, layer_type
from bridge.schema import Layer, Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Reduction")
class Reduction(CaffeLayer):
    """``coeff`` times the SUM, ASUM (of absolute values), SUMSQ (of squares) or MEAN from ``axis`` on.

    Source: caffe.proto ``ReductionParameter``, reduction_layer.cpp; ONNX ``Abs``,
    ``ReduceSum``, ``ReduceSumSquare``, ``ReduceMean``.
    """

    rounds_near_one = False
    message = "reduction_param"
    enum_start = 1
    bottom_count = (1, 1)
    top_count = (1, 1)

    operation: Literal["SUM", "ASUM", "SUMSQ", "MEAN"] = "SUM"
    axis: int = 0
    coeff: float = 1.0

    def _axes(self, rank: int) -> tuple[int, ...]:
        return tuple(range(canonical_axis(self.axis, rank, self), rank))

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return count([bottoms[0][axis] for axis in self._axes(len(bottoms[0]))])

    def magnitudes(self) -> Layer:
        return self.changed(coeff=abs(self.coeff))

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (bottoms[0][: canonical_axis(self.axis, len(bottoms[0]), self)],)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        kind = {"SUM": "Sum", "ASUM": "Sum", "SUMSQ": "SumSquare", "MEAN": "Mean"}[self.operation]
        axes = self._axes(len(g.shape(x[0])))
        # not ReduceL1: OpenVINO 2026 does not see its axes where they are an attribute, before opset 18
        y = g.reduce(kind, g.Abs(x[0]) if self.operation == "ASUM" else x[0], axes, keepdims=False)
        return str(y if self.coeff == 1 else g.Mul(y, g.const(np.float32(self.coeff))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axes = self._axes(x[0].ndim)
        values = {"ASUM": F.absolute, "SUMSQ": F.square}.get(self.operation, F.identity)(x[0])
        divisor = count(x[0].shape[axes[0] :]) if self.operation == "MEAN" else 1
        return F.sum(values, axis=axes) * (self.coeff / divisor)
