"""Normalize: to Euclidean length one, with SSD's scale or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import CaffeLayer, layer_type
from bridge.schema import Blob, Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Normalize", "L2Normalization", "L2Normalize", "L2Norm")
class Normalize(CaffeLayer):
    """``x / sqrt(sum x^2 + eps) * scale``.

    SSD's Normalize sums over the channels, and with ``across_spatial`` over the image as well.
    Blobs: ``scale``, a single number with ``channel_shared``, else one per channel.
    The Normalize of other forks, which stores nothing and has no ``norm_param``, and what they
    call L2Normalization, divide a whole sample by its length: no scale, and no eps.

    Attributes:
        across_spatial: Sum over height and width too.
        channel_shared: One scale for all channels.
        eps: Added to the sum of squares.

    Source: caffe.proto ``NormalizeParameter``, normalize_layer.cpp of SSD, normalize_layer.cpp of
    caffe-windows, l2_normalization_layer.cpp of compact bilinear pooling.
    """

    rounds_near_one = False
    message = "norm_param"
    bottom_count = (1, 1)
    top_count = (1, 1)
    ranks = {"scale": 1}

    across_spatial: bool = True
    channel_shared: bool = True
    eps: float = 1e-10

    def roles(self, stored: int) -> tuple[str, ...]:
        scaled = self.type == "Normalize" and (stored > 0 or self.message in self.definition)
        return ("scale",) if scaled else ()

    def with_blobs(self, blobs: Sequence[Blob]) -> Normalize:
        if self.channel_shared and len(blobs) == 1 and blobs[0].size == 1:
            blobs = [blobs[0].reshaped(())]
        return super().with_blobs(blobs)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        shape = () if self.channel_shared else tuple(bottoms[0][1:2])
        return dict.fromkeys(self.roles(len(self.blobs)), shape)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) < 2:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="2 or more")
        return (bottoms[0],)

    @property
    def _scaled(self) -> bool:
        return bool(self.roles(len(self.blobs)))

    def summed_axes(self, rank: int) -> Shape:
        """The axes over which it sums."""
        return (1,) if self._scaled and not self.across_spatial else tuple(range(1, rank))

    def _scale_shape(self, size: int, rank: int) -> Shape:
        return () if self.channel_shared else (size, *[1] * (rank - 2))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        rank = len(g.shape(x[0]))
        total = g.reduce("SumSquare", x[0], self.summed_axes(rank))
        if not self._scaled:
            return g.Div(x[0], g.Sqrt(total))
        y = g.Div(x[0], g.Sqrt(g.Add(total, g.const(np.float32(self.eps)))))
        return g.Mul(y, g.blob(self, "scale", self._scale_shape(self.blobs.blob("scale").size, rank)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        scale = getattr(link, "scale", None)
        total = F.sum(x[0] ** 2, self.summed_axes(x[0].ndim), keepdims=True)
        if scale is None:
            return x[0] / F.sqrt(total)
        return x[0] / F.sqrt(total + self.eps) * F.reshape(scale, self._scale_shape(scale.size, x[0].ndim))
