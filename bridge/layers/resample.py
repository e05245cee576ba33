"""Resample: FlowNet's resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.layers.resizing import weighted_chainer, weighted_onnx
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Resample")
class Resample(CaffeLayer):
    """Resize (N, C, H, W) to ``height`` x ``width``, or to the extents of a second bottom.

    LINEAR weighs the pixels around a place by a triangle, CUBIC by a cubic function (a = -0.5); where the image
    becomes smaller, ``antialias`` widens both. Weights outside the image count nothing.

    Attributes:
        height, width: The size; with a second bottom they have no part.
        type: How values between pixels are found.
        antialias: Widen the weights where the image becomes smaller.

    Source: caffe.proto ``ResampleParameter``, resample_layer.cpp and resample_layer.cu of FlowNet2.
    """

    message = "resample_param"
    enum_start = 1
    harmless = {"factor": "is read by no version of the layer"}
    bottom_count = (1, 2)
    top_count = (1, 1)

    height: int = 0
    width: int = 0
    kind: Literal["NEAREST", "LINEAR", "CUBIC", "AREA"] = "LINEAR"
    antialias: bool = True

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        kind = p.read("type", Literal["NEAREST", "LINEAR", "CUBIC", "AREA"], "LINEAR")
        if kind == "AREA":
            raise p.fail("parameter 'type' is AREA, which FlowNet's Caffe refuses")
        sides = {side: p.read(side, int, 0) for side in ("height", "width")}
        return {**sides, "kind": kind, "antialias": p.read("antialias", bool, True)}

    def space(self, *bottoms: Shape) -> Shape:
        """(height, width) of the top."""
        return tuple(bottoms[1][2:]) if len(bottoms) > 1 else (self.height, self.width)

    def position_extent(self, *bottoms: Shape) -> int:
        return max(bottoms[0][2:])

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if any(len(bottom) != 4 for bottom in bottoms):
            raise self.fail(f"the inputs have {', '.join(str(len(bottom)) for bottom in bottoms)} axes", expected="4")
        space = self.space(*bottoms)
        if min(space) < 1:
            raise self.fail(f"height {space[0]} and width {space[1]}", expected="1 or more")
        if self.kind == "NEAREST" and space[0] * bottoms[0][3] != space[1] * bottoms[0][2]:
            raise self.fail(f"NEAREST from {bottoms[0][2:]} to {space} changes the aspect, and reads beside the image")
        return ((*bottoms[0][:2], *space),)

    def weights(self, old: Shape, new: Shape) -> list[np.ndarray]:
        """The weights of rows and of columns, each (new extent, extent) float32."""
        factors = [float(np.float32(a) / np.float32(b)) for a, b in zip(old, new, strict=True)]
        spread = self.antialias and max(factors) > 1
        # as in the source, the half pixel that is added along an axis is the other axis's
        return [
            self._axis(n, m, factor, other, spread)
            for n, m, factor, other in zip(old, new, factors, factors[::-1], strict=True)
        ]

    def _axis(self, old: int, new: int, factor: float, other: float, spread: bool) -> np.ndarray:
        places = np.arange(new) * factor + other / 2 - 0.5
        middle = (np.sign(places) * np.floor(np.abs(places) + 0.5)).astype(np.int64)
        if self.kind == "NEAREST":
            return np.asarray(np.eye(old, dtype=np.float32)[np.clip(middle, 0, old - 1)])
        slope = 1 / factor if spread else 1.0
        width = 4 if self.kind == "CUBIC" else 2
        reach = 2 if factor < 1 else int(np.ceil(width / slope))
        distance = places[:, None] - np.arange(old)
        weights = _cubic(slope * distance) if self.kind == "CUBIC" else np.maximum(1 - np.abs(slope * distance), 0)
        weights[np.abs(np.arange(old) - middle[:, None]) > reach] = 0
        total = weights.sum(axis=1, keepdims=True)
        return np.asarray(weights / np.where(total == 0, 1, total), np.float32)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        shapes = [tuple(g.shape(value)) for value in x]
        return weighted_onnx(g, x[0], *self.weights(shapes[0][2:], self.space(*shapes)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        shapes = [value.shape for value in x]
        return weighted_chainer(F, x[0], *self.weights(shapes[0][2:], self.space(*shapes)))


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = x * x * (1.5 * x - 2.5) + 1, x * (x * (-0.5 * x + 2.5) - 4) + 2
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0)))
