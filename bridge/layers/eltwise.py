"""Eltwise: sum, product or maximum of equal shapes."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.layers.base import MANY, CaffeLayer, layer_type, same_shapes
from bridge.schema import Layer, Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Eltwise")
class Eltwise(CaffeLayer):
    """PROD, SUM (with one coefficient per bottom) or MAX (which takes no heed of coefficients).

    A SUM that works in place loses the bottom it writes over: Caffe sets the top to 0 before it adds.

    Source: caffe.proto ``EltwiseParameter``, eltwise_layer.cpp; ONNX ``Mul``, ``Add``, ``Max``.
    """

    float16_safe = True
    rounds_near_one = False
    message = "eltwise_param"

    bottom_count = (2, MANY)
    top_count = (1, 1)

    operation: Literal["PROD", "SUM", "MAX"] = "SUM"
    coeff: tuple[float, ...] = ()

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return len(bottoms)

    def magnitudes(self) -> Layer:
        return self.changed(coeff=[abs(c) for c in self.coeff])

    @property
    def takes_largest(self) -> bool:
        return self.operation == "MAX"

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if self.coeff and len(self.coeff) != len(bottoms):
            raise self.fail(f"{len(self.coeff)} coefficients for {len(bottoms)} bottoms")
        if self.coeff and self.operation == "PROD":
            raise self.fail("coefficients go with SUM, not PROD")
        return (same_shapes(self, bottoms),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if self.operation == "SUM":
            terms = [v if c == 1 else g.Mul(v, g.const(np.float32(c))) for v, c in self._terms(x)]
            return str(reduce(g.Add, terms))
        return str(reduce(g.Mul, x) if self.operation == "PROD" else g.Max(*x))

    @property
    def takes_cut(self) -> bool:
        return self.operation == "SUM"

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        if self.operation == "SUM":
            return F.caffe_eltwise_sum([v if c == 1 else v * c for v, c in self._terms(x)])
        if self.operation == "PROD":
            return reduce(lambda a, b: a * b, x)
        # of equal values Caffe gives the gradient to the second bottom, and of later ones to the first that has it
        first, second, *others = x
        return reduce(F.maximum, others, F.maximum(second, first))

    def _terms(self, x: tuple[Any, ...]) -> list[tuple[Any, float]]:
        """What is added up: each bottom and its coefficient."""
        terms = zip(x, self.coeff or (1.0,) * len(x), self.bottoms, strict=True)
        return [(v, c) for v, c, bottom in terms if bottom not in self.tops] or [(x[0], 0.0)]
