"""RNN: the plain recurrent layer, with an output of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.recurrent import Recurrent
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("RNN")
class RNN(Recurrent):
    """``h' = tanh(W_x x + b + W_h h)``, ``o = tanh(W_o h' + b_o)``; where ``cont`` is 0, h counts as 0.

    Blobs: ``weight`` (H, inputs), ``bias`` (H), with a static input ``static_weight`` (H, its inputs),
    ``hidden_weight`` (H, H), ``output_weight`` (H, H), ``output_bias`` (H). H is ``num_output``.

    Source: caffe.proto ``RecurrentParameter``, rnn_layer.cpp.
    """

    adds_many = False
    float16_safe = True

    ranks = {
        "weight": 2, "bias": 1, "static_weight": 2, "hidden_weight": 2, "output_weight": 2, "output_bias": 1,
    }  # fmt: skip

    def roles(self, stored: int) -> tuple[str, ...]:
        static = ("static_weight",) if self.static else ()
        return ("weight", "bias", *static, "hidden_weight", "output_weight", "output_bias")

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        size = self.num_output
        square = {"hidden_weight": (size, size), "output_weight": (size, size)}
        return {**self._input_shapes(size, bottoms), **square, "output_bias": (size,)}

    def onnx_step(self, g: OnnxBuilder, fed: str, cont: str, state: list[str]) -> tuple[str, list[str]]:
        if state:
            fed = g.Add(fed, g.MatMul(g.Mul(state[0], cont), self._turned(g, "hidden_weight")))
        hidden = g.Tanh(fed)
        output = g.Add(g.MatMul(hidden, self._turned(g, "output_weight")), g.blob(self, "output_bias"))
        return g.Tanh(output), [hidden]

    def chainer_step(
        self, F: ChainerFunctions, link: LayerArrays, fed: Any, cont: Any, state: list[Any]
    ) -> tuple[Any, list[Any]]:
        if state:
            fed = fed + F.linear(state[0] * cont, link.hidden_weight)
        hidden = F.tanh(fed)
        return F.tanh(F.linear(hidden, link.output_weight, link.output_bias)), [hidden]
