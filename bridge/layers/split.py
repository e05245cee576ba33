"""Split: one blob under several names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bridge.layers.base import MANY, MovingLayer, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Split")
class Split(MovingLayer):
    """Every top is the bottom. Caffe inserts it where a blob has several readers.

    Source: split_layer.cpp.
    """

    in_place = False

    @property
    def copies(self) -> bool:
        return True

    bottom_count = (1, 1)
    top_count = (1, MANY)

    @property
    def shares_memory(self) -> bool:
        return True

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (bottoms[0],) * len(self.tops)

    def keeping_tops(self, places: Sequence[int]) -> Split:
        return self.changed(tops=[self.tops[place] for place in places])

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        return [x[0]] * len(self.tops)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return (x[0],) * len(self.tops)
