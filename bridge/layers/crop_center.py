"""CropCenter: a border cut off all around, as in waifu2x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("CropCenter")
class CropCenter(MovingLayer):
    """Each axis loses ``crop_size`` of that axis at its start and as much at its end.

    Source: crop_center_layer.cpp of lltcggie's Caffe; ONNX ``Slice``.
    """

    message = "crop_center_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    crop_size: tuple[int, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if any(n < 0 for n in values["crop_size"]):
            raise p.fail(f"parameter 'crop_size' is {values['crop_size']}", expected="no negative number")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(self.crop_size) != len(bottoms[0]):
            raise self.fail(f"crop_size has {len(self.crop_size)} values", expected=f"{len(bottoms[0])}, one per axis")
        if any(2 * crop + 1 > n for crop, n in zip(self.crop_size, bottoms[0], strict=True)):
            raise self.fail(f"crop_size {times(self.crop_size)} leaves nothing of the input {times(bottoms[0])}")
        return (tuple(n - 2 * crop for crop, n in zip(self.crop_size, bottoms[0], strict=True)),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        cut = [(axis, crop) for axis, crop in enumerate(self.crop_size) if crop]
        if not cut:
            return x[0]
        starts, ends = [crop for _, crop in cut], [-crop for _, crop in cut]
        return g.Slice(x[0], g.ints(starts), g.ints(ends), g.ints([axis for axis, _ in cut]))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return x[0][tuple(slice(crop, n - crop) for crop, n in zip(self.crop_size, x[0].shape, strict=True))]
