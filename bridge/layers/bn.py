"""BN: the batch normalisations of PSPNet, TSN and SegNet, which share a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_OLD = ("scale_filler", "shift_filler", "var_eps", "decay", "moving_average")


@layer_type("BN")
class BN(CaffeLayer):
    """``(x - mean) / sqrt(variance + eps) * gamma + beta`` per channel, or ``x * gamma + beta``.

    With four blobs (``gamma``, ``beta``, ``mean``, ``variance``; PSPNet, TSN) the statistics are the
    stored ones, except in the old form (known by its fields ``var_eps``, ``decay``, ...), which uses
    the batch's own unless ``moving_average`` is set. With two (``gamma``, ``beta``; SegNet, DeconvNet),
    INFERENCE has the statistics folded into the blobs, and LEARN uses the batch's own.
    Each blob has C values, in whatever shape the fork stores: (1, C, 1, 1), (1, C) or (C).
    SegNet's may have two more tops, the batch's mean and variance, (1, C, 1, 1) each; INFERENCE has none.

    Attributes:
        eps: Added to the variance (``var_eps`` in the old form).
        momentum: How much of the stored statistics stays at each training step.
        stored: Whether the stored statistics serve at test time.
        frozen: Whether they serve in training too.
        bn_mode: SegNet's mode; empty for the forks with four blobs.

    Source: caffe.proto ``BNParameter``, bn_layer.cpp of PSPNet, TSN and SegNet; ONNX ``BatchNormalization``.
    """

    float16_safe = True
    rounds_near_one = False
    message = "bn_param"
    bottom_count = (1, 1)
    top_count = (1, 3)
    ranks = {}
    chainer_params = {}
    statistics = frozenset({"mean", "variance"})
    adjusts = True

    eps: float = 1e-5
    momentum: float = 0.9
    stored: bool = True
    frozen: bool = False
    bn_mode: Literal["LEARN", "INFERENCE", ""] = ""

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        if p.read("axis", int, 1) != 1:
            raise p.fail(f"parameter 'axis' is {p.read('axis', int, 1)}", expected="1")
        if "bn_mode" in p:
            mode = p.read("bn_mode", Literal["LEARN", "INFERENCE"], "LEARN")
            return {"eps": 1e-9, "stored": False, "bn_mode": mode}
        if any(name in p for name in _OLD):
            return {
                "eps": p.read("var_eps", float, 1e-10),
                "momentum": 1 - p.read("decay", float, 0.05),
                "stored": p.read("moving_average", bool, False),
                "frozen": p.read("frozen", bool, False),
            }
        return {
            "eps": p.read("eps", float, 1e-5),
            "momentum": p.read("momentum", float, 0.9),
            "frozen": p.read("frozen", bool, False),
        }

    @property
    def filler_fields(self) -> dict[str, str]:  # type: ignore[override]
        old = self.bn_mode or "scale_filler" in self.definition.message(self.message)
        return {"gamma": "scale_filler", "beta": "shift_filler"} if old else {"gamma": "slope_filler"}

    @property
    def by_batch(self) -> bool:
        """Whether the batch's own statistics count at test time."""
        return self.bn_mode != "INFERENCE" and not ("mean" in self.blobs and self.stored)

    @property
    def needs_float32(self) -> bool:
        return self.by_batch  # it squares what it is given

    @property
    def uses_batch(self) -> bool:
        return not self.frozen and self.bn_mode != "INFERENCE"

    def summed_axes(self, rank: int) -> Shape:
        return (0, *range(2, rank)) if self.by_batch else ()

    def roles(self, stored: int) -> tuple[str, ...]:
        two = stored == 2 if stored else bool(self.bn_mode) or len(self.tops) > 1
        return ("gamma", "beta") if two else ("gamma", "beta", "mean", "variance")

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        shape = (1, bottoms[0][1], 1, 1)
        return {role: self._stored_shape(role, shape) for role in self.roles(len(self.blobs))}

    def _stored_shape(self, role: str, shape: Shape) -> Shape:
        own = self.blobs.blob(role).shape if role in self.blobs else shape
        return own if [n for n in own if n != 1] == [n for n in shape if n != 1] else shape

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) < 2:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="2 or more")
        if len(self.tops) > 1 and not self.by_batch:
            raise self.fail(f"has {len(self.tops)} tops, but takes no statistics of the batch", expected="1 top")
        return (bottoms[0], *[(1, bottoms[0][1], 1, 1)] * (len(self.tops) - 1))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str | tuple[str, ...]:
        channels = self.blobs.blob("gamma").size
        if "mean" in self.blobs and self.stored:
            blobs = [g.blob(self, role, (channels,)) for role in self.blobs]
            return g.BatchNormalization(x[0], *blobs, epsilon=self.eps)
        rank = len(g.shape(x[0]))
        gamma, beta = (g.blob(self, role, (channels, *[1] * (rank - 2))) for role in ("gamma", "beta"))
        if self.bn_mode == "INFERENCE":
            return g.Add(g.Mul(x[0], gamma), beta)
        y, *statistics = self._normalized(g, x[0], rank)
        tops = [g.Reshape(each, g.ints([1, channels, 1, 1])) for each in statistics[: len(self.tops) - 1]]
        return g.Add(g.Mul(y, gamma), beta), *tops

    def _normalized(self, g: OnnxBuilder, x: str, rank: int) -> tuple[str, str, str]:
        """By the statistics of the batch itself; these too."""
        axes = (0, *range(2, rank))
        mean = g.reduce("Mean", x, axes)
        centred = g.Sub(x, mean)
        variance = g.reduce("Mean", g.Mul(centred, centred), axes)
        return g.Div(centred, g.Sqrt(g.Add(variance, g.const(np.float32(self.eps))))), mean, variance

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.caffe_bn(x[0], link, self)
