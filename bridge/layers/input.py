"""Input: where a net is fed."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.schema import Shape
from bridge.schema.message import Message


@layer_type("Input")
class Input(CaffeLayer):
    """Declares its tops as inputs of the net.

    Attributes:
        input_shapes: Shape of each top; shorter than ``tops`` where the file gives none.

    Source: caffe.proto ``InputParameter``, input_layer.cpp.
    """

    message = "input_param"

    input_shapes: tuple[Shape, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        shapes = tuple(_dims(p, shape) for shape in p.message.messages("shape"))
        return {"input_shapes": shapes}

    def __post_init__(self) -> None:
        # one shape serves all tops
        if len(self.input_shapes) == 1 < len(self.tops):
            object.__setattr__(self, "input_shapes", self.input_shapes * len(self.tops))


def _dims(p: Params, shape: Message) -> Shape:
    dims = tuple(shape.all("dim"))
    if not all(isinstance(dim, int) and dim >= 0 for dim in dims):
        raise p.fail(f"input shape {dims} is not a list of extents")
    return tuple(int(dim) for dim in dims)  # type: ignore[arg-type]
