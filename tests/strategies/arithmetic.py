"""Arithmetic on whole inputs, sums over axes, and the largest values."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images, numbers_below, repeated, shapes, some_flags


@layer_case("Eltwise")
@st.composite
def eltwises(draw: Any, kind: str) -> LayerCase:
    shape, count = draw(shapes()), draw(st.integers(2, 4))
    operation = draw(st.sampled_from(["PROD", "SUM", "MAX"]))
    coeffs = [draw(st.sampled_from([-1, 0.5, 1, 2])) for _ in range(count)] if draw(st.booleans()) else []
    extra = repeated("coeff", coeffs) if operation != "PROD" else ""
    body = f"eltwise_param {{ operation: {operation} {extra} {some_flags(draw, 'stable_prod_grad')} }}"
    return LayerCase(kind, body, (shape,) * count, seed=draw(SEEDS))


@layer_case("Axpy")
@st.composite
def axpys(draw: Any, kind: str) -> LayerCase:
    shape = draw(images())
    a = draw(st.sampled_from([shape[:2], (*shape[:2], 1, 1)]))
    return LayerCase(kind, "", (a, shape, shape), seed=draw(SEEDS))


@layer_case("Reduction")
@st.composite
def reductions(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    operation, coeff = draw(st.sampled_from(["SUM", "ASUM", "SUMSQ", "MEAN", 4])), draw(st.sampled_from([1, 0.5, -2]))
    body = f"reduction_param {{ operation: {operation} axis: {axis} coeff: {coeff} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("ArgMax")
@st.composite
def argmaxes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    extent = math.prod(shape[1:]) if axis is None else shape[axis]
    fields = [f"axis: {axis}"] if axis is not None else []
    fields += [f"top_k: {draw(st.integers(1, min(extent, 5)))}"] if draw(st.booleans()) else []
    body = f"argmax_param {{ {' '.join(fields)} {some_flags(draw, 'out_max_val')} }}"
    data = {0: numbers_below(4)} if draw(st.booleans()) else {}  # equal values, of which the last is the first
    return LayerCase(kind, body, (shape,), data=data, seed=draw(SEEDS))
