"""Input: where a net is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape
from bridge.schema.message import Message


@layer_type("Input")
class Input(MovingLayer):
    """Declares its tops as inputs of the net.

    Attributes:
        shapes: Shape of each top; shorter than ``tops`` where the file gives none.

    Source: caffe.proto ``InputParameter``, input_layer.cpp.
    """

    is_input = True
    bottom_count = (0, 0)
    message = "input_param"

    shapes: tuple[Shape, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        shapes = tuple(_dims(p, shape) for shape in p.message.messages("shape"))
        return {"shapes": shapes}

    def __post_init__(self) -> None:
        # one shape serves all tops
        if len(self.shapes) == 1 < len(self.tops):
            object.__setattr__(self, "shapes", self.shapes * len(self.tops))

    @property
    def input_shapes(self) -> tuple[Shape | None, ...]:
        return (*self.shapes, *(None,) * (len(self.tops) - len(self.shapes)))

    def with_input_shapes(self, shapes: Mapping[str, Shape]) -> Input:
        if not shapes.keys() & set(self.tops):
            return self
        own = dict(zip(self.tops, self.shapes, strict=False))
        new = [shapes.get(top, own.get(top, ())) for top in self.tops]
        return self.changed(shape=[Message(dim=[*shape]) for shape in new])

    def keeping_tops(self, places: Sequence[int]) -> Input:
        shapes = [Message(dim=[*self.shapes[place]]) for place in places if place < len(self.shapes)]
        return self.changed(tops=[self.tops[place] for place in places], shape=shapes)

    @classmethod
    def of(cls, name: str, top: str, shape: Shape | None = None, where: str = "") -> Message:
        """The definition of an input of one top."""
        definition = cls.define(name, tops=[top], where=where)
        if shape is not None:
            definition.set(cls.message, Message(shape=Message(dim=[*map(int, shape)])))
        return definition


def _dims(p: Params, shape: Message) -> Shape:
    dims = tuple(shape.all("dim"))
    if not all(isinstance(dim, int) and dim >= 0 for dim in dims):
        raise p.fail(f"input shape {dims} is not a list of extents")
    return tuple(int(dim) for dim in dims)  # type: ignore[arg-type]
