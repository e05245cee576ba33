"""Permute: the axes in another order, as SSD has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Permute")
class Permute(MovingLayer):
    """Axis ``i`` of the top is axis ``order[i]`` of the bottom; axes that are not named follow in order.

    Source: caffe.proto ``PermuteParameter``, permute_layer.cpp of SSD; ONNX ``Transpose``.
    """

    message = "permute_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    order: tuple[int, ...] = ()

    @property
    def shares_memory(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    def axes(self, rank: int) -> Shape:
        """The whole order, for a bottom of ``rank`` axes."""
        if len(set(self.order)) != len(self.order) or any(not 0 <= axis < rank for axis in self.order):
            raise self.fail(f"order {times(self.order)} does not name axes of the {rank} of the input, each once")
        return (*self.order, *(axis for axis in range(rank) if axis not in self.order))

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (tuple(bottoms[0][axis] for axis in self.axes(len(bottoms[0]))),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        axes = self.axes(len(g.shape(x[0])))
        return x[0] if axes == tuple(range(len(axes))) else g.Transpose(x[0], perm=axes)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.transpose(x[0], self.axes(x[0].ndim))
