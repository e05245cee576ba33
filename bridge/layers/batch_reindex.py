"""BatchReindex: samples chosen by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, layer_type
from bridge.schema import Shape
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("BatchReindex")
class BatchReindex(MovingLayer):
    """Sample ``i`` of the top is the sample of bottom 0 that bottom 1 (one axis) names at ``i``.

    Source: batch_reindex_layer.cpp; ONNX ``Gather``.
    """

    bottom_count = (2, 2)
    top_count = (1, 1)

    def fill(self, bottom: int) -> Fill | None:
        """Places in the batch of the first bottom."""
        return (lambda rng, shape, shapes: rng.integers(0, (shapes[0] or (1,))[0], shape)) if bottom == 1 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[1]) != 1 or not bottoms[0]:
            raise self.fail(f"bottom 1 has {len(bottoms[1])} axes", expected="1, and bottom 0 at least 1")
        return ((*bottoms[1], *bottoms[0][1:]),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Gather(x[0], g.Cast(x[1], to=g.INT64), axis=0)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.get_item(x[0], x[1].array.astype("i"))
