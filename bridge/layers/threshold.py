"""Threshold: a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Threshold")
class Threshold(ElementwiseLayer):
    """1 where ``x`` is greater than ``threshold``, else 0.

    Source: caffe.proto ``ThresholdParameter``, threshold_layer.cpp; ONNX ``Greater``, ``Cast``.
    """

    rounds_near_one = False
    message = "threshold_param"

    threshold: float = 0.0

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (self.threshold,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Cast(g.Greater(x[0], g.const(np.float32(self.threshold))), to=g.FLOAT)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.as_variable(x[0].xp.asarray(x[0].array > self.threshold, x[0].dtype))
