"""ReLU6: ReLU up to six."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ReLU6")
class ReLU6(ElementwiseLayer):
    """``min(max(0, x), 6)``.

    Some forks declare a ``negative_slope`` in ``relu6_param``; none that was found reads it.

    Source: relu6_layer.cpp of several forks; ONNX ``Clip``.
    """

    rounds_near_one = False
    message = "relu6_param"
    ignored = frozenset({"negative_slope", "engine"})

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Clip(x[0], g.const(np.float32(0)), g.const(np.float32(6)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.clip(x[0], 0.0, 6.0)
