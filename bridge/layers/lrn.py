"""LRN: local response normalisation, across or within channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import NeuronLayer, Params, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_AT_ONCE = 1 << 16
"""Values whose bounds are computed at once; a dozen arrays of float64 are made of them."""


@layer_type("LRN")
class LRN(NeuronLayer):
    """``x (k + alpha / n * sum x^2)^-beta`` over ``n`` values.

    ACROSS_CHANNELS sums over ``local_size`` channels; WITHIN_CHANNEL averages over a
    ``local_size`` square with zero padding and takes 1 for ``k``, whatever is given.

    Source: caffe.proto ``LRNParameter``, lrn_layer.cpp; ONNX ``LRN``, ``AveragePool``;
    Krizhevsky et al., ImageNet classification with deep convolutional networks, 2012.
    """

    adds_many = False
    rounds_near_one = False
    message = "lrn_param"

    local_size: int = 5
    alpha: float = 1.0
    beta: float = 0.75
    norm_region: Literal["ACROSS_CHANNELS", "WITHIN_CHANNEL"] = "ACROSS_CHANNELS"
    k: float = 1.0

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["local_size"] < 1 or values["local_size"] % 2 == 0:
            raise p.fail(f"parameter 'local_size' is {values['local_size']}", expected="an odd number")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="4")
        return (bottoms[0],)

    def rounding_bound(self, unit: float, *bottoms: np.ndarray) -> np.ndarray | None:
        """Across channels, Caffe and ONNX Runtime add the channel that enters the window, and subtract the one behind.

        So the sum of squares has the error of the largest sum before it, not of its own.

        Source: lrn_layer.cpp, ``CrossChannelForward_cpu``.
        """
        if self.norm_region != "ACROSS_CHANNELS":
            return None
        (x,) = bottoms
        found = np.empty_like(x)
        step = max(1, _AT_ONCE * x.shape[2] // max(1, x.size))
        for start in range(0, x.shape[2], step):  # rows do not depend on each other, and what is between takes memory
            rows = slice(start, start + step)
            found[:, :, rows] = self._rounding_of(unit, x[:, :, rows])
        return found

    def _rounding_of(self, unit: float, x: np.ndarray) -> np.ndarray:
        reach = (self.local_size - 1) // 2
        padded = np.pad(x * x * (self.alpha / self.local_size), ((0, 0), (reach, reach), (0, 0), (0, 0)))
        sums = np.cumsum(np.pad(padded, ((0, 0), (1, 0), (0, 0), (0, 0))), axis=1)
        window = np.maximum(sums[:, self.local_size :] - sums[:, : -self.local_size], 0)
        # Each step so far has rounded twice: after adding, with one square more than the window has, and after
        # subtracting. Independent errors add up in their squares.
        entered = window + np.pad(window, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        peak = np.minimum(entered, sums[:, self.local_size :]) + abs(self.k)
        error = unit * np.sqrt(np.cumsum(2 * peak**2, axis=1))
        scale = window + self.k
        with np.errstate(all="ignore"):
            ends = [np.maximum(scale + way * error, 0) ** -self.beta for way in (-1, 1)]
            moved = np.maximum(*(np.abs(x * (end - scale**-self.beta)) for end in ends))
            found: np.ndarray = moved + unit * np.abs(x * scale**-self.beta)
        return np.where(np.isnan(found), np.inf, found)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if self.norm_region == "ACROSS_CHANNELS":
            if min(self.alpha, self.beta) <= 0:
                raise UnsupportedLayerError("ONNX's LRN wants alpha and beta greater than 0", subject=self.label)
            return g.LRN(x[0], alpha=self.alpha, beta=self.beta, bias=self.k, size=self.local_size)
        n, pad = self.local_size, (self.local_size - 1) // 2
        mean = g.AveragePool(g.Mul(x[0], x[0]), kernel_shape=(n, n), pads=(pad,) * 4, count_include_pad=1)
        scale = g.Add(g.Mul(mean, g.const(np.float32(self.alpha))), g.const(np.float32(1)))
        return g.Mul(x[0], g.Pow(scale, g.const(np.float32(-self.beta))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        n = self.local_size
        if self.norm_region == "ACROSS_CHANNELS":
            return F.local_response_normalization(x[0], n, self.k, self.alpha / n, self.beta)
        mean = F.average_pooling_2d(x[0] ** 2, n, 1, (n - 1) // 2)
        return x[0] * (self.alpha * mean + 1) ** -self.beta
