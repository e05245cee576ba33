"""PixelShuffle: channels to pixels, as in super-resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("PixelShuffle")
class PixelShuffle(MovingLayer):
    """``y[c, r h + i, r w + j] = x[c r^2 + i r + j, h, w]`` with ``r`` the ``upscale_factor``.

    Source: caffe.proto ``PixelShuffleParameter``; ONNX ``DepthToSpace`` (CRD); Shi et al., Real-time single
    image and video super-resolution using an efficient sub-pixel convolutional neural network, 2016.
    """

    message = "pixelshuffle_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    upscale_factor: int = 1

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["upscale_factor"] < 1:
            raise p.fail(f"parameter 'upscale_factor' is {values['upscale_factor']}", expected="1 or more")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        r = self.upscale_factor
        if len(bottoms[0]) != 4 or bottoms[0][1] % r**2:
            raise self.fail(f"the input is {times(bottoms[0])}", expected=f"4 axes and a multiple of {r**2} channels")
        n, c, h, w = bottoms[0]
        return ((n, c // r**2, h * r, w * r),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.DepthToSpace(x[0], blocksize=self.upscale_factor, mode="CRD")

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        r, (n, c, h, w) = self.upscale_factor, x[0].shape
        blocks = F.reshape(x[0], (n, c // r**2, r, r, h, w))
        return F.reshape(F.transpose(blocks, (0, 1, 4, 2, 5, 3)), (n, c // r**2, h * r, w * r))
