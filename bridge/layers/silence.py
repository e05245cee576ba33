"""Silence: the end of blobs that nobody is to print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MANY, MovingLayer, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Silence")
class Silence(MovingLayer):
    """Reads its bottoms and does nothing, so that they are no outputs of the net.

    Source: silence_layer.cpp.
    """

    bottom_count = (1, MANY)
    top_count = (0, 0)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return ()

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        return []

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return ()
