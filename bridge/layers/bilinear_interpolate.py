"""BilinearInterpolate: bilinear resizing as PyTorch has it, from the fork that PyTorch's converters write for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.layers.resizing import linear_weights, weighted_chainer, weighted_onnx
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("BilinearInterpolate")
class BilinearInterpolate(CaffeLayer):
    """Resize (N, C, H, W) to ``dst_h`` x ``dst_w``, or by ``scale_factor``, rounded down.

    With ``align_corners`` the corners stay where they are; else pixels are squares, and the image keeps its extent.

    Attributes:
        dst_h, dst_w: The size; one that is not given stays as it is.
        scale_factor: The factor; given in the place of a size.
        align_corners: Whether corners stay.

    Source: bilinear_interpolate_layer.cpp of inisis/caffe (Brocolli).
    """

    message = "bilinear_interpolate_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    dst_h: int | None = None
    dst_w: int | None = None
    scale_factor: float | None = None
    align_corners: bool = True

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        sized = values["dst_h"] is not None or values["dst_w"] is not None
        if sized == (values["scale_factor"] is not None):
            raise p.fail("needs dst_h or dst_w, or a scale_factor, and not both")
        if any(
            value is not None and value <= 0 for value in (values["dst_h"], values["dst_w"], values["scale_factor"])
        ):
            raise p.fail("sizes and factors must be positive")
        return values

    def space(self, space: Shape) -> Shape:
        """(height, width) of the top for a bottom of (height, width) ``space``."""
        if self.scale_factor is not None:
            return tuple(int(np.float32(n) * np.float32(self.scale_factor)) for n in space)
        return tuple(n if wanted is None else wanted for n, wanted in zip(space, (self.dst_h, self.dst_w), strict=True))

    def position_extent(self, *bottoms: Shape) -> int:
        return max(bottoms[0][2:])

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="4")
        space = self.space(bottoms[0][2:])
        if min(space) < 1 or min(bottoms[0][2:]) < 2:
            raise self.fail(f"{bottoms[0][2:]} would become {space}; both need 2 or more rows and columns")
        return ((*bottoms[0][:2], *space),)

    def weights(self, space: Shape) -> list[np.ndarray]:
        """The weights of rows and of columns, each (new extent, extent) float32."""
        return [self._axis(n, m) for n, m in zip(space, self.space(space), strict=True)]

    def _axis(self, old: int, new: int) -> np.ndarray:
        if old == new:
            return np.eye(old, dtype=np.float32)
        index = np.arange(new, dtype=np.float32)
        if self.align_corners:
            places = np.float32(old - 1) / np.float32(max(new - 1, 1)) * index
        else:
            places = np.float32(old) / np.float32(new) * (index + np.float32(0.5)) - np.float32(0.5)
        return linear_weights(np.clip(places, 0, old - 1), old)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return weighted_onnx(g, x[0], *self.weights(tuple(g.shape(x[0])[2:])))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return weighted_chainer(F, x[0], *self.weights(x[0].shape[2:]))
