"""Log: the logarithm of a scaled and shifted value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, Params, layer_type
from bridge.layers.exp import check_base

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Log")
class Log(ElementwiseLayer):
    """``log(shift + scale x)`` to ``base``; a base of -1 stands for e.

    Source: caffe.proto ``LogParameter``, log_layer.cpp; ONNX ``Mul``, ``Add``, ``Log``.
    """

    rounds_near_one = False
    message = "log_param"

    base: float = -1.0
    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        check_base(p, values["base"])
        if values["base"] == 1:
            raise p.fail("parameter 'base' is 1, to which there is no logarithm")
        return values

    def _factor(self) -> np.float32:
        return np.float32(1) if self.base == -1 else np.float32(1) / np.log(np.float32(self.base))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        y = x[0] if self.scale == 1 else g.Mul(x[0], g.const(np.float32(self.scale)))
        y = g.Log(y if self.shift == 0 else g.Add(y, g.const(np.float32(self.shift))))
        return str(y if self.base == -1 else g.Mul(y, g.const(self._factor())))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.log(x[0] * self.scale + self.shift) * self._factor()
