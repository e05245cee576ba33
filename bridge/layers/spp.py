"""SPP: pooling into a pyramid of fixed numbers of bins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bridge.layers.base import CaffeLayer, layer_type
from bridge.layers.pooling import Pooling
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("SPP")
class SPP(CaffeLayer):
    """Spatial pyramid pooling of (N, C, H, W): level l has 2^l x 2^l bins; all levels, flattened, side by side.

    A pyramid of one level is that level's pooling as it is, (N, C, 1, 1).

    Attributes:
        pyramid_height: Number of levels.
        pool: The kind of pooling.

    Source: caffe.proto ``SPPParameter``, spp_layer.cpp; He et al., Spatial Pyramid Pooling in Deep
    Convolutional Networks for Visual Recognition, 2014.
    """

    adds_many = False
    float16_safe = True
    rounds_near_one = False
    message = "spp_param"

    bottom_count = (1, 1)
    top_count = (1, 1)

    pyramid_height: int
    pool: Literal["MAX", "AVE", "STOCHASTIC"] = "MAX"

    def levels(self, space: Shape) -> list[Pooling]:
        """The pooling of each level, for an image of extents ``space``."""
        if self.pyramid_height < 1:
            raise self.fail(f"pyramid_height is {self.pyramid_height}", expected="at least 1")
        return [self._level(2**level, space) for level in range(self.pyramid_height)]

    def _level(self, bins: int, space: Shape) -> Pooling:
        kernel = tuple(-(-n // bins) for n in space)
        pad = tuple((k * bins - n + 1) // 2 for k, n in zip(kernel, space, strict=True))
        if any(p >= k for p, k in zip(pad, kernel, strict=True)):
            raise self.fail(f"{bins} bins do not fit the input {space}")
        return Pooling(name=self.name, type="Pooling", pool=self.pool, kernel_size=kernel, stride=kernel, pad=pad)

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return count(bottoms[0][2:]) if self.pool == "AVE" else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        (bottom,) = bottoms
        if len(bottom) != 4:
            raise self.fail(f"the input has {len(bottom)} axes", expected="4")
        pooled = [level.infer(bottom)[0] for level in self.levels(bottom[2:])]
        return (pooled[0],) if len(pooled) == 1 else ((bottom[0], sum(count(shape[1:]) for shape in pooled)),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        pooled = [level.to_onnx(g, x[0]) for level in self.levels(tuple(g.shape(x[0])[2:]))]
        return str(pooled[0] if len(pooled) == 1 else g.Concat(*(g.Flatten(y, axis=1) for y in pooled), axis=1))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        pooled = [level.to_chainer(F, link, x[0]) for level in self.levels(x[0].shape[2:])]
        return pooled[0] if len(pooled) == 1 else F.concat([F.reshape(y, (len(y), -1)) for y in pooled], axis=1)
