"""DummyData: constants, or random numbers, as data."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import MANY, MovingLayer, Params, layer_type, single
from bridge.schema import Shape
from bridge.schema.hooks import PartialShape
from bridge.schema.message import Message

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_SIDES = ("num", "channels", "height", "width")


@layer_type("DummyData")
class DummyData(MovingLayer):
    """Tops filled by fillers: constants once and for all, random ones anew in every pass.

    Attributes:
        shapes: The shape of each top.
        values: The constant that fills each top; ``None`` where the filler is random.

    Source: caffe.proto ``DummyDataParameter``, dummy_data_layer.cpp; ONNX ``Expand``.
    """

    constant_tops = True
    message = "dummy_data_param"
    bottom_count = (0, 0)
    top_count = (1, MANY)

    shapes: tuple[Shape, ...] = ()
    values: tuple[float | None, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        shapes = [p.of(shape).read("dim", tuple[int, ...], ()) for shape in p.message.messages("shape")]
        if not shapes:  # as files of 2014 have them
            sides = [p.read(side, tuple[int, ...], ()) for side in _SIDES]
            if len({len(side) for side in sides}) > 1:
                raise p.fail(f"{', '.join(_SIDES)} are given {[*map(len, sides)]} times", expected="equally often")
            shapes = list(zip(*sides, strict=True))
        return {"shapes": tuple(shapes), "values": tuple(map(_constant, p.message.messages("data_filler")))}

    def __post_init__(self) -> None:
        # one serves all tops, and no filler is zero
        object.__setattr__(self, "shapes", self._each(self.shapes))
        object.__setattr__(self, "values", self._each(self.values or (0.0,)))

    def _each(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given * len(self.tops) if len(given) == 1 else given

    def check_wiring(self) -> None:
        super().check_wiring()
        for what, given in (("shape", self.shapes), ("data_filler", self.values)):
            if len(given) != len(self.tops):
                raise self.fail(f"has {len(given)} {what}", expected=f"1 or {len(self.tops)}, one per top")

    def feeds(self, given: Container[str]) -> bool:
        return None in self.values or any(top in given for top in self.tops)

    @property
    def extents(self) -> tuple[PartialShape | None, ...]:
        return self.shapes

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return self.shapes

    def _constants(self) -> list[tuple[float, Shape]]:
        constants = [(v, shape) for v, shape in zip(self.values, self.shapes, strict=True) if v is not None]
        if len(constants) < len(self.values):
            raise UnsupportedLayerError(
                "draws random numbers in every pass", subject=self.label, hint="feed its tops as inputs"
            )
        return constants

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        return [g.Expand(g.const(np.float32(v)), g.ints(shape)) for v, shape in self._constants()]

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return tuple(F.as_variable(link.xp.full(shape, v, np.float32)) for v, shape in self._constants())


def _constant(filler: Message) -> float | None:
    value = filler.get("value", 0)
    constant = filler.text("type", "constant") == "constant" and isinstance(value, (int, float))
    return single(value) if constant else None  # type: ignore[arg-type]
