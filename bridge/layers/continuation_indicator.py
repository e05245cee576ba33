"""ContinuationIndicator: where sequences begin, for LSTM and RNN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import MovingLayer, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ContinuationIndicator")
class ContinuationIndicator(MovingLayer):
    """(T, N) of 1, but for the first step, which is 0.

    Attributes:
        time_step: T.
        batch_size: N.

    Source: continuation_indicator_layer.cpp of forks with CTC.
    """

    message = "continuation_indicator_param"
    bottom_count = (0, 0)
    top_count = (1, 1)

    time_step: int = 0
    batch_size: int = 0

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if not (self.time_step and self.batch_size):
            raise self.fail(f"time_step {self.time_step}, batch_size {self.batch_size}: both must be given")
        return ((self.time_step, self.batch_size),)

    def _values(self) -> np.ndarray:
        values = np.ones(self.infer()[0], np.float32)
        values[0] = 0
        return values

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.const(self._values())

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.as_variable(link.xp.asarray(self._values()))
