"""MVN: every sample to mean zero and variance one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import NeuronLayer, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("MVN")
class MVN(NeuronLayer):
    """``(x - mean) / (deviation + eps)`` per channel of a sample, or per sample.

    The top has four axes; those that the bottom lacks have extent 1.

    Attributes:
        normalize_variance: Whether to divide at all.
        across_channels: One mean and deviation for all channels of a sample.
        eps: Added to the deviation, not to the variance.

    Source: caffe.proto ``MVNParameter``, mvn_layer.cpp; ONNX ``ReduceMean``, ``Sub``, ``Sqrt``, ``Div``.
    """

    rounds_near_one = False
    message = "mvn_param"

    normalize_variance: bool = True
    across_channels: bool = False
    eps: float = 1e-9

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) > 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="at most 4")
        return ((*bottoms[0], *[1] * (4 - len(bottoms[0]))),)

    def summed_axes(self, rank: int = 4) -> Shape:
        """The axes over which it sums."""
        return tuple(range(1 if self.across_channels else 2, rank))

    def rounding_bound(self, unit: float, *bottoms: np.ndarray) -> np.ndarray | None:
        """The mean of n values has the error of a sum of n terms; the same for all of them.

        Where the deviation is not much larger than that error, it moves the result far: a channel that is constant
        but for rounding can become 0 or 1. The bound is how far apart the results of two such means can be.
        """
        x = bottoms[0].reshape(self.infer(bottoms[0].shape)[0])
        axes = self.summed_axes(4)
        terms = max(1, int(np.prod([x.shape[axis] for axis in axes])))
        with np.errstate(all="ignore"):
            own = unit * np.abs(x).mean(axis=axes, keepdims=True) * (np.sqrt(terms) if terms > 1 else 0)
            centred = x - x.mean(axis=axes, keepdims=True)
            if not self.normalize_variance:
                return np.asarray(own + unit * np.abs(centred))  # a difference is rounded relative to itself
            variance = (centred**2).mean(axis=axes, keepdims=True)
            exact = centred / (np.sqrt(variance) + self.eps)
            error = unit * np.sqrt(terms) * np.abs(exact)
            low, high = exact, exact
            for share in 2.0 ** -np.arange(0, 40, 2.0):  # the largest movement need not be at the largest error
                for shift in (-share * own, share * own):
                    result = (centred + shift) / (np.sqrt(variance + shift**2) + self.eps)
                    low, high = np.fmin(low, result), np.fmax(high, result)
        return np.asarray(np.nan_to_num(high - low + error, nan=np.inf, posinf=np.inf))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        rank = len(g.shape(x[0]))
        y = x[0] if rank == 4 else g.Reshape(x[0], g.ints([0] * rank + [1] * (4 - rank)))
        y = g.Sub(y, g.reduce("Mean", y, self.summed_axes()))
        if not self.normalize_variance:
            return str(y)
        deviation = g.Sqrt(g.reduce("Mean", g.Mul(y, y), self.summed_axes()))
        return g.Div(y, g.Add(deviation, g.const(np.float32(self.eps))))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        y = F.reshape(x[0], self.infer(x[0].shape)[0])
        y = y - F.broadcast_to(F.mean(y, axis=self.summed_axes(), keepdims=True), y.shape)
        if not self.normalize_variance:
            return y
        variance = F.mean(y**2, axis=self.summed_axes(), keepdims=True)
        deviation = F.sqrt(F.relu(variance) + 1e-30)  # whose gradient at 0 is 0, and not infinite
        return y / F.broadcast_to(deviation + self.eps, y.shape)
