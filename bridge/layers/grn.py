"""GRN: each place's channels divided by their length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import NeuronLayer, Params, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("GRN")
class GRN(NeuronLayer):
    """``x / sqrt(sum of x^2 over the channels + bias)``, at each place of (N, C, H, W).

    Attributes:
        added: ``bias`` of the parameters, which is added to the sum of squares.

    Source: caffe.proto ``GRNParameter``, grn_layer.cpp of OpenVINO's training_toolbox_caffe; ONNX ``ReduceSum``.
    """

    rounds_near_one = False
    message = "grn_param"
    harmless = {"dummy_backward": "says how a gradient is computed"}

    added: float = 1e-7

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        return {"added": p.read("bias", float, 1e-7)}

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="4")
        return (bottoms[0],)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        squares = g.reduce("Sum", g.Mul(x[0], x[0]), [1])
        return str(g.Div(x[0], g.Sqrt(g.Add(squares, g.const(np.float32(self.added))))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        length = F.sqrt(F.sum(x[0] * x[0], axis=1, keepdims=True) + np.float32(self.added))
        return x[0] / F.broadcast_to(length, x[0].shape)
