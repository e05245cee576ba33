"""Exp: a base to the power of a scaled and shifted value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, Params, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Exp")
class Exp(ElementwiseLayer):
    """``base ^ (shift + scale x)``; a base of -1 stands for e.

    Source: caffe.proto ``ExpParameter``, exp_layer.cpp; ONNX ``Mul``, ``Exp``.
    """

    rounds_near_one = False
    message = "exp_param"

    base: float = -1.0
    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        check_base(p, values["base"])
        return values

    def _factors(self) -> tuple[np.float32, np.float32]:
        """The result is ``outer * exp(inner * x)``."""
        base = np.float32(np.e if self.base == -1 else self.base)
        with np.errstate(over="ignore"):
            return np.log(base) * np.float32(self.scale), base ** np.float32(self.shift)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        inner, outer = self._factors()
        y = g.Exp(x[0] if inner == 1 else g.Mul(x[0], g.const(inner)))
        return str(y if outer == 1 else g.Mul(y, g.const(outer)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        inner, outer = self._factors()
        return F.exp(x[0] * inner) * outer


def check_base(p: Params, base: float) -> None:
    """Refuse a base that has no logarithm.

    Raises:
        ModelError: It is not positive, and not the -1 that stands for e.
    """
    if base != -1 and not 0 < base < np.inf:
        raise p.fail(f"parameter 'base' is {base:g}", expected="a positive number, or -1 for e")
