"""AbsVal: the absolute value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("AbsVal")
class AbsVal(ElementwiseLayer):
    """``|x|``.

    Source: absval_layer.cpp; ONNX ``Abs``.
    """

    in_place = False
    rounds_near_one = False

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (0.0,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Abs(x[0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.absolute(x[0])
