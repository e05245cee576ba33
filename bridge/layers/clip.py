"""Clip: values kept between two bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Clip")
class Clip(ElementwiseLayer):
    """``max(min, min(x, max))``.

    Source: caffe.proto ``ClipParameter``, clip_layer.cpp; ONNX ``Clip``.
    """

    rounds_near_one = False
    message = "clip_param"

    min: float
    max: float

    def _bounds(self) -> tuple[float, float]:
        """Both bounds; where they are the wrong way round the lower one holds, as in Caffe."""
        return self.min, max(self.min, self.max)

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (self.min, self.max)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Clip(x[0], *(g.const(np.float32(bound)) for bound in self._bounds()))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        low, high = self._bounds()
        if low == high:  # which Chainer's own function refuses
            return F.broadcast_to(x[0].xp.asarray(low, dtype=x[0].dtype), x[0].shape)
        return F.clip(x[0], low, high)
