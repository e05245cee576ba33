"""Axpy: a product per channel and a sum in one, as SENet has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import CaffeLayer, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Axpy")
class Axpy(CaffeLayer):
    """``a * x + y``: bottom 0 is ``a``, one number per sample and channel, bottoms 1 and 2 are ``x`` and ``y``.

    Source: axpy_layer.cpp of SENet; ONNX ``Mul``, ``Add``; Hu et al., Squeeze-and-excitation networks, 2018.
    """

    adds_many = False
    float16_safe = True
    rounds_near_one = False

    bottom_count = (3, 3)
    top_count = (1, 1)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        a, x, y = bottoms
        if x != y or a[:2] != x[:2] or any(extent != 1 for extent in a[2:]) or len(a) not in (2, len(x)):
            raise self.fail(f"{times(a)} times {times(x)} plus {times(y)} do not fit")
        return (x,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        missing = len(g.shape(x[1])) - len(g.shape(x[0]))
        a = g.Reshape(x[0], g.ints([0, 0] + [1] * missing)) if missing else x[0]
        return g.Add(g.Mul(a, x[1]), x[2])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.reshape(x[0], (*x[1].shape[:2], *[1] * (x[1].ndim - 2))) * x[1] + x[2]
