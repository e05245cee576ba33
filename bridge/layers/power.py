"""Power: a power of a scaled and shifted value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Power")
class Power(ElementwiseLayer):
    """``(shift + scale x) ^ power``.

    Where ``power`` or ``scale`` is 0, the result is one number, whatever ``x`` is.

    Source: caffe.proto ``PowerParameter``, power_layer.cpp; ONNX ``Mul``, ``Add``, ``Pow``.
    """

    rounds_near_one = False
    message = "power_param"

    power: float = 1.0
    scale: float = 1.0
    shift: float = 0.0

    def _constant(self) -> np.float32 | None:
        """The one result of a layer that does not look at its input."""
        if self.power * self.scale != 0:
            return None
        with np.errstate(all="ignore"):
            return np.float32(self.shift) ** np.float32(self.power)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        constant = self._constant()
        if constant is not None:
            return g.Expand(g.const(constant), g.Shape(x[0]))
        y = x[0]
        for op, number, neutral in ((g.Mul, self.scale, 1), (g.Add, self.shift, 0), (g.Pow, self.power, 1)):
            y = y if number == neutral else op(y, g.const(np.float32(number)))
        return str(y)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        constant = self._constant()
        if constant is not None:
            return F.broadcast_to(x[0].xp.asarray(constant, dtype=x[0].dtype), x[0].shape)
        y = x[0] * self.scale + self.shift
        return y if self.power == 1 else y**self.power
