"""LSTMUnit: one step of an LSTM's cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import CaffeLayer, layer_type
from bridge.layers.lstm import chainer_unit, onnx_unit
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("LSTMUnit")
class LSTMUnit(CaffeLayer):
    """What LSTM does with its gates in one step.

    Bottoms: the cell before (1, N, H); the gates i, f, o, g before their functions (1, N, 4H); ``cont`` (1, N).
    Tops: the cell and the hidden state after, (1, N, H) each.

    Source: lstm_unit_layer.cpp.
    """

    adds_many = False
    float16_safe = True

    bottom_count = (3, 3)
    top_count = (2, 2)

    def batch_axis(self, bottom: int) -> int:
        return 1

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        cell, gates, cont = bottoms
        if len(cell) != 3 or gates != (1, cell[1], 4 * cell[2]) or cont != (1, cell[1]) or cell[0] != 1:
            raise self.fail(f"bottoms are {', '.join(map(times, bottoms))}", expected="1 x N x H, 1 x N x 4H, 1 x N")
        return (cell, cell)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        cell, gates, cont = x
        size = g.shape(cell)[2]
        hidden, after = onnx_unit(g, gates, g.Unsqueeze(cont, g.ints([2])), cell, size)
        return [after, hidden]

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        cell, gates, cont = x
        hidden, after = chainer_unit(F, gates, cont.array[:, :, None], cell)
        return after, hidden
