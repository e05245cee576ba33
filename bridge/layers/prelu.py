"""PReLU: ReLU with a trained slope below zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("PReLU")
class PReLU(ElementwiseLayer):
    """``max(0, x) + slope min(0, x)``.

    Blobs: ``slope`` (C), or a single number with ``channel_shared``.

    Attributes:
        channel_shared: One slope serves all channels.

    Source: caffe.proto ``PReLUParameter``, prelu_layer.cpp; ONNX ``PRelu``.
    """

    rounds_near_one = False
    message = "prelu_param"
    chainer_params = {"slope": "W"}
    filler_fields = {"slope": "filler"}

    channel_shared: bool = False

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("slope",)

    def rank(self, role: str) -> int | None:
        return 0 if self.channel_shared else 1

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {"slope": () if self.channel_shared else (bottoms[0][1],)}

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) < 2:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="at least 2")
        return (bottoms[0],)

    @property
    def thresholds(self) -> tuple[float, ...]:
        return (0.0,)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        own = self.blobs.blob("slope").shape
        return g.PRelu(x[0], g.blob(self, "slope", [*own, *[1] * (len(g.shape(x[0])) - 2)]))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        slope = F.reshape(link.W, [*link.W.shape, *[1] * (x[0].ndim - 2)])
        return F.where(x[0].array > 0, x[0], x[0] * F.broadcast_to(slope, x[0].shape))
