"""Filter: the samples that a selector picks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MANY, MovingLayer, layer_type
from bridge.schema import Shape, times
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Filter")
class Filter(MovingLayer):
    """Of every bottom but the last, the samples where the last bottom, one number per sample, is not 0.

    How many there are depends on the values, so the tops' first extent stays open.

    Source: filter_layer.cpp; ONNX ``NonZero``, ``Gather``.
    """

    bottom_count = (2, MANY)
    top_count = (1, MANY)
    data_dependent = (0,)

    def check_wiring(self) -> None:
        super().check_wiring()
        if len(self.tops) != len(self.bottoms) - 1:
            raise self.fail(
                f"has {len(self.tops)} tops", expected=f"{len(self.bottoms) - 1}: one per bottom but the last"
            )

    def fill(self, bottom: int) -> Fill | None:
        return (lambda rng, shape, _: rng.integers(0, 2, shape)) if bottom == len(self.bottoms) - 1 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        *picked, selector = bottoms
        if not selector or any(extent != 1 for extent in selector[1:]):
            raise self.fail(f"the selector is {times(selector)}", expected="one number per sample")
        for index, shape in enumerate(picked):
            if shape[:1] != selector[:1]:
                raise self.fail(f"bottom {index} is {times(shape)}", expected=f"{selector[0]} samples as the selector")
        return tuple(picked)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        *picked, selector = x
        flat = selector if len(g.shape(selector)) == 1 else g.Reshape(selector, g.ints([-1]))
        places = g.Reshape(g.NonZero(flat), g.ints([-1]))
        return [g.Gather(value, places, axis=0) for value in picked]

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        *picked, selector = x
        places = selector.array.reshape(-1).nonzero()[0]
        return tuple(F.get_item(value, places) for value in picked)
