"""AbsVal: the absolute value."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import ElementwiseLayer, layer_type


@layer_type("AbsVal")
class AbsVal(ElementwiseLayer):
    """``|x|``.

    Source: absval_layer.cpp; ONNX ``Abs``.
    """

    rounds_near_one = False

    def to_onnx(self, g: Any, *x: str) -> str:
        return str(g.Abs(x[0]))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.absolute(x[0])
