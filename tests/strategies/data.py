"""Layers that read no blob."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, repeated, shapes


@layer_case("Input")
@st.composite
def inputs(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    return LayerCase(kind, f"input_param {{ shape {{ {repeated('dim', shape)} }} }}", ())


@layer_case("Parameter")
@st.composite
def parameters(draw: Any, kind: str) -> LayerCase:
    return LayerCase(
        kind, f"parameter_param {{ shape {{ {repeated('dim', draw(shapes(0)))} }} }}", (), seed=draw(SEEDS)
    )


@layer_case("DummyData")
@st.composite
def dummies(draw: Any, kind: str) -> LayerCase:
    """Constants only; random fillers are another value in every pass."""
    tops = draw(st.integers(1, 3))
    many = [draw(shapes(4, 4)) for _ in range(draw(st.sampled_from([1, tops])))]
    if draw(st.booleans()):
        dims = [" ".join(f"dim: {n}" for n in shape) for shape in many]
        body = " ".join(f"shape {{ {dim} }}" for dim in dims)
    else:
        sides = zip(("num", "channels", "height", "width"), zip(*many, strict=True), strict=True)
        body = " ".join(f"{side}: {n}" for side, extents in sides for n in extents)
    fillers = [f"value: {draw(st.sampled_from([0, 1, -0.25]))}" for _ in range(draw(st.sampled_from([0, 1, tops])))]
    body += " ".join(f" data_filler {{ type: 'constant' {filler} }}" for filler in fillers)
    return LayerCase(kind, f"dummy_data_param {{ {body} }}", (), tops=tops)
