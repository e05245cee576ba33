"""MVN: every sample to mean zero and variance one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bridge.layers.base import NeuronLayer, layer_type
from bridge.schema import Shape


@layer_type("MVN")
class MVN(NeuronLayer):
    """``(x - mean) / (deviation + eps)`` per channel of a sample, or per sample.

    Attributes:
        normalize_variance: Whether to divide at all.
        across_channels: One mean and deviation for all channels of a sample.
        eps: Added to the deviation, not to the variance.

    Source: caffe.proto ``MVNParameter``, mvn_layer.cpp; ONNX ``ReduceMean``, ``Sub``, ``Sqrt``, ``Div``.
    """

    message = "mvn_param"

    normalize_variance: bool = True
    across_channels: bool = False
    eps: float = 1e-9

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if not 1 <= len(bottoms[0]) <= 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes, expected 1 to 4")
        return (bottoms[0],)

    def _axes(self, rank: int) -> tuple[int, ...]:
        return tuple(range(1 if self.across_channels else 2, rank))

    def to_onnx(self, g: Any, *x: str) -> str:
        axes = self._axes(len(g.shape(x[0])))
        mean: Callable[[str], str] = (lambda v: str(g.reduce("Mean", v, axes))) if axes else str
        centred = str(g.Sub(x[0], mean(x[0])))
        if not self.normalize_variance:
            return centred
        deviation = g.Sqrt(mean(g.Mul(centred, centred)))
        return str(g.Div(centred, g.Add(deviation, g.const(np.float32(self.eps)))))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        axes = self._axes(x[0].ndim)
        mean = (lambda v: F.broadcast_to(F.mean(v, axis=axes, keepdims=True), v.shape)) if axes else F.identity
        centred = x[0] - mean(x[0])
        return centred / (F.sqrt(mean(centred**2)) + self.eps) if self.normalize_variance else centred
