"""Tile: copies one after the other along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, Params, canonical_axis, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Tile")
class Tile(MovingLayer):
    """The bottom, ``tiles`` times along ``axis``.

    Source: caffe.proto ``TileParameter``, tile_layer.cpp; ONNX ``Tile``.
    """

    message = "tile_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    axis: int = 1
    tiles: int

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["tiles"] < 1:
            raise p.fail(f"parameter 'tiles' is {values['tiles']}", expected="at least 1")
        return values

    def _repeats(self, rank: int) -> list[int]:
        repeats = [1] * rank
        repeats[canonical_axis(self.axis, rank, self)] = self.tiles
        return repeats

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (tuple(n * m for n, m in zip(bottoms[0], self._repeats(len(bottoms[0])), strict=True)),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return x[0] if self.tiles == 1 else g.Tile(x[0], g.ints(self._repeats(len(g.shape(x[0])))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.tile(x[0], tuple(self._repeats(x[0].ndim)))
