"""Upsample: SegNet's inverse of max pooling, and the repetition of pixels of YOLO's Caffe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.schema import Shape, count, times
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Upsample")
class Upsample(CaffeLayer):
    """With two bottoms, values go to where a mask says; with one, each pixel becomes a block of equal ones.

    The mask, bottom 1, is the second top of a max pooling: for each value its place in the
    (H, W) plane of the top. Everything else in the top is 0.

    Attributes:
        scale: (height, width) of the block that a pixel becomes.
        pad_out: (height, width) taken off the end, 0 or 1 each; with a mask only.
        size: (height, width) of the top instead; with a mask only.

    Source: caffe.proto ``UpsampleParameter``, upsample_layer.cpp of SegNet and of MobileNet-YOLO;
    ONNX ``ScatterElements``, ``Resize``.
    """

    adds_many = False
    float16_safe = True
    rounds_near_one = False
    message = "upsample_param"
    bottom_count = (1, 2)
    top_count = (1, 1)

    scale: tuple[int, ...] = (2, 2)
    pad_out: tuple[int, ...] = (0, 0)
    size: tuple[int, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        scale = p.read("scale", int, 2)
        values = {
            "scale": (p.read("scale_h", int, scale), p.read("scale_w", int, scale)),
            "pad_out": tuple(int(p.read(f"pad_out_{side}", bool, False)) for side in "hw"),
            "size": (p.read("upsample_h", int, 0), p.read("upsample_w", int, 0)),
        }
        if 0 in values["size"]:
            values["size"] = ()
        if min(values["scale"]) < 1:
            raise p.fail(f"parameter 'scale' is {times(values['scale'])}", expected="1 or more")
        if any(pad and s != 2 for pad, s in zip(values["pad_out"], values["scale"], strict=True)):
            raise p.fail("parameter 'pad_out' goes with scale 2 only")
        return values

    def fill(self, bottom: int) -> Fill | None:
        """Places in a plane that is no smaller than the bottom's."""
        return (lambda rng, shape, _: rng.integers(0, max(1, count(shape[2:])), shape)) if bottom == 1 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="4")
        if len(bottoms) == 1:
            if self.size or any(self.pad_out):
                raise self.fail("upsample_h, upsample_w and pad_out go with a mask, as bottom 1")
        elif bottoms[1] != bottoms[0]:
            raise self.fail(f"the mask is {times(bottoms[1])}", expected=f"{times(bottoms[0])} as bottom 0")
        return ((*bottoms[0][:2], *self.space(bottoms[0][2:])),)

    def space(self, space: Shape) -> Shape:
        """(height, width) of the top for a bottom of (height, width) ``space``."""
        return self.size or tuple(n * s - pad for n, s, pad in zip(space, self.scale, self.pad_out, strict=True))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if len(x) == 1:
            scales = g.const(np.array([1, 1, *self.scale], np.float32))
            how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            return g.Resize(x[0], "", scales, mode="nearest", **how)
        height, width = self.size or self.space(tuple(g.shape(x[0])[2:]))
        flat = [g.Reshape(value, g.ints([0, 0, -1])) for value in x]
        leading = g.Slice(g.Shape(x[0]), g.ints([0]), g.ints([2]))
        empty = g.Expand(g.const(np.float32(0)), g.Concat(leading, g.ints([height * width]), axis=0))
        filled = g.ScatterElements(empty, g.Cast(flat[1], to=7), flat[0], axis=2)
        return g.Reshape(filled, g.ints([0, 0, height, width]))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        if len(x) > 1:
            return F.caffe_upsample(x[0], x[1], self.space(x[0].shape[2:]))
        (n, c, h, w), (a, b) = x[0].shape, self.scale
        blocks = F.broadcast_to(F.reshape(x[0], (n, c, h, 1, w, 1)), (n, c, h, a, w, b))
        return F.reshape(blocks, (n, c, h * a, w * b))
