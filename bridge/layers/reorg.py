"""Reorg: pixels to channels and back, in the order of YOLO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Reorg")
class Reorg(MovingLayer):
    """(N, C, H, W) to (N, C s^2, H / s, W / s) with ``s`` the ``stride``; with ``reverse`` to (N, C / s^2, H s, W s).

    With ``reverse``, channel ``(i s + j) C / s^2 + c`` goes to the pixels ``(s h + i, s w + j)`` of channel ``c``.
    Forward is not the inverse of that: Darknet reads the values as if they lay in C / s^2
    channels of H s by W s pixels, and models are trained with that, so it is done here too.

    Source: caffe.proto ``ReorgParameter``, reorg_layer.hpp of caffe-yolov2, reorg_cpu of Darknet;
    ONNX ``SpaceToDepth``, ``DepthToSpace`` (DCR).
    """

    message = "reorg_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    stride: int
    reverse: bool = False

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["stride"] < 1:
            raise p.fail(f"parameter 'stride' is {values['stride']}", expected="1 or more")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        s = self.stride
        if len(bottoms[0]) != 4 or bottoms[0][1] % s**2 or (not self.reverse and any(n % s for n in bottoms[0][2:])):
            raise self.fail(f"the input is {times(bottoms[0])}, which stride {s} does not divide")
        n, c, h, w = bottoms[0]
        return ((n, c // s**2, h * s, w * s) if self.reverse else (n, c * s**2, h // s, w // s),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        s = self.stride
        if self.reverse:
            return g.DepthToSpace(x[0], blocksize=s, mode="DCR")
        channels, height, width = g.shape(x[0])[1:]
        read = g.Reshape(x[0], g.ints([0, channels // s**2, height * s, width * s]))
        return g.Reshape(g.SpaceToDepth(read, blocksize=s), g.ints([0, channels * s**2, height // s, width // s]))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        s, (n, c, h, w) = self.stride, x[0].shape
        if self.reverse:
            y = F.transpose(F.reshape(x[0], (n, s, s, c // s**2, h, w)), (0, 3, 4, 1, 5, 2))
        else:
            y = F.transpose(F.reshape(x[0], (n, c // s**2, h, s, w, s)), (0, 3, 5, 1, 2, 4))
        return F.reshape(y, self.infer(x[0].shape)[0])
