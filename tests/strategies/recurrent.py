"""Recurrent layers."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS


@layer_case("LSTM", "RNN")
@st.composite
def recurrents(draw: Any, kind: str) -> LayerCase:
    steps, samples, size = (draw(st.integers(1, 4)) for _ in range(3))
    static, exposed = draw(st.booleans()), draw(st.booleans())
    states = {"LSTM": 2, "RNN": 1}[kind] * exposed
    x = (steps, samples, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    more = [(samples, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))] if static else []
    cont = {1: lambda rng, shape: rng.choice([0, 1, 1, 0.5], shape)}
    bottoms = (x, (steps, samples), *more, *[(1, samples, size)] * states)
    body = f"recurrent_param {{ num_output: {size} expose_hidden: {str(exposed).lower()} }}"
    return LayerCase(kind, body, bottoms, tops=1 + states, data=cont, seed=draw(SEEDS))


@layer_case("ContinuationIndicator")
@st.composite
def indicators(draw: Any, kind: str) -> LayerCase:
    steps, samples = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return LayerCase(kind, f"continuation_indicator_param {{ time_step: {steps} batch_size: {samples} }}", ())


@layer_case("LSTMUnit")
@st.composite
def lstm_units(draw: Any, kind: str) -> LayerCase:
    samples, size = (draw(st.integers(1, 4)) for _ in range(2))
    cont = {2: lambda rng, shape: rng.choice([0, 1, 0.5], shape)}
    bottoms = ((1, samples, size), (1, samples, 4 * size), (1, samples))
    return LayerCase(kind, "", bottoms, tops=2, data=cont, seed=draw(SEEDS))
