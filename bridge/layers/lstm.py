"""LSTM: long short-term memory over sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.recurrent import Recurrent
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("LSTM")
class LSTM(Recurrent):
    """``c' = f c + i g``, ``h' = o tanh(c')``, with the gates i, f, o of ``sigmoid`` and g of ``tanh``.

    Where ``cont`` is 0, h and c before the step count as 0.

    Blobs: ``weight`` (4H, inputs), ``bias`` (4H), with a static input ``static_weight`` (4H, its inputs),
    ``hidden_weight`` (4H, H). The rows are those of i, f, o, g. H is ``num_output``.

    Source: caffe.proto ``RecurrentParameter``, lstm_layer.cpp, lstm_unit_layer.cpp.
    """

    adds_many = False
    float16_safe = True

    ranks = {"weight": 2, "bias": 1, "static_weight": 2, "hidden_weight": 2}
    states = 2

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight", "bias", *(("static_weight",) if self.static else ()), "hidden_weight")

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        size = self.num_output
        return {**self._input_shapes(4 * size, bottoms), "hidden_weight": (4 * size, size)}

    def onnx_step(self, g: OnnxBuilder, fed: str, cont: str, state: list[str]) -> tuple[str, list[str]]:
        if state:
            fed = g.Add(fed, g.MatMul(g.Mul(state[0], cont), self._turned(g, "hidden_weight")))
        hidden, cell = onnx_unit(g, fed, cont, state[1] if state else None, self.num_output)
        return hidden, [hidden, cell]

    def chainer_step(
        self, F: ChainerFunctions, link: LayerArrays, fed: Any, cont: Any, state: list[Any]
    ) -> tuple[Any, list[Any]]:
        if state:
            fed = fed + F.linear(state[0] * cont, link.hidden_weight)
        hidden, cell = chainer_unit(F, fed, cont, state[1] if state else None)
        return hidden, [hidden, cell]


def onnx_unit(g: OnnxBuilder, gates: str, cont: str, cell: str | None, size: int) -> tuple[str, str]:
    """One step of the cell: h and c, (1, N, H) each, from the gates before their functions, (1, N, 4H)."""
    i, f, o, new = g.op("Split", gates, g.ints([size] * 4), outputs=4, axis=2)
    after = g.Mul(g.Sigmoid(i), g.Tanh(new))
    if cell is not None:
        after = g.Add(g.Mul(g.Mul(g.Sigmoid(f), cont), cell), after)
    return g.Mul(g.Sigmoid(o), g.Tanh(after)), str(after)


def chainer_unit(F: ChainerFunctions, gates: Any, cont: Any, cell: Any) -> tuple[Any, Any]:
    """As :func:`onnx_unit`, on variables (..., 4H), but ``cont`` an array (..., 1)."""
    i, f, o, new = F.split_axis(gates, 4, gates.ndim - 1)
    after = F.sigmoid(i) * F.tanh(new)
    if cell is not None:
        after = _forget(F, f, cont) * cell + after
    return F.sigmoid(o) * F.tanh(after), after


def _forget(F: ChainerFunctions, f: Any, cont: Any) -> Any:
    """``cont sigmoid(f)`` with Caffe's slope, which is the derivative where ``cont`` is 0 or 1."""
    gate = F.sigmoid(f).array * cont
    return gate + (f - f.array) * (gate * (1 - gate))
