"""Parameter: a blob as a top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Parameter")
class Parameter(MovingLayer):
    """The top is the layer's own blob, which training may change.

    Blobs: ``weight`` (``shape``).

    Attributes:
        shape: Of the blob.

    Source: caffe.proto ``ParameterParameter``, parameter_layer.hpp.
    """

    message = "parameter_param"
    bottom_count = (0, 0)
    top_count = (1, 1)

    shape: tuple[int, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        dims = p.inner("shape").read("dim", tuple[int, ...], ())
        if any(dim < 0 for dim in dims):
            raise p.fail(f"shape {dims} is not a list of extents")
        return {"shape": dims}

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight",)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {"weight": self.shape}

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (self.shape,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.blob(self, "weight")

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.identity(link.W)
