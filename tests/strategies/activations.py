"""Functions of single values, and Softmax."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, positive, shapes, some_flags, wide

_VALUES: dict[str, tuple[str, dict[str, list[float]]]] = {
    "AbsVal": ("", {}),
    "BNLL": ("", {}),
    "ELU": ("elu_param", {"alpha": [0, 0.5, 1, 2, -0.3]}),
    "HardSigmoid": ("hardsigmoid_param", {"alpha": [0.1, 1 / 6], "beta": [0.5, 0.4]}),
    "HardSwish": ("", {}),
    "Mish": ("", {}),
    "ReLU": ("relu_param", {"negative_slope": [0, 1, 0.1, 0.5, 2, -0.5]}),
    "ReLU6": ("relu6_param", {"negative_slope": [0, 0.25]}),
    "Sigmoid": ("", {}),
    "Swish": ("swish_param", {"beta": [0, 1, 0.5, 2, -1]}),
    "TanH": ("", {}),
    "Threshold": ("threshold_param", {"threshold": [0, 1, 0.25, -2]}),
    "Exp": ("exp_param", {"base": [-1, 2, 10, 0.5, 1], "scale": [0, 1, 0.1, -0.2], "shift": [0, 1, -0.5]}),
}


@layer_case(*_VALUES)
@st.composite
def neurons(draw: Any, kind: str) -> LayerCase:
    field, options = _VALUES[kind]
    given = [f"{name}: {draw(st.sampled_from(values)):g}" for name, values in options.items() if draw(st.booleans())]
    if kind == "HardSigmoid":
        field = draw(st.sampled_from([field, "hard_sigmoid_param"]))
    body = f"{field} {{ {' '.join(given)} }}" if field else ""
    return LayerCase(kind, body, (draw(shapes()),), data={0: wide}, seed=draw(SEEDS))


@layer_case("Clip")
@st.composite
def clips(draw: Any, kind: str) -> LayerCase:
    low, high = (draw(st.floats(-9, 9)) for _ in range(2))
    body = f"clip_param {{ min: {low:.3f} max: {high:.3f} }}"
    return LayerCase(kind, body, (draw(shapes()),), data={0: wide}, seed=draw(SEEDS))


@layer_case("Log")
@st.composite
def logs(draw: Any, kind: str) -> LayerCase:
    base, scale, shift = (draw(st.sampled_from(values)) for values in ([-1, 2, 10, 0.5], [1, 2, 0.1], [0, 1, 0.5]))
    body = f"log_param {{ base: {base} scale: {scale} shift: {shift} }}"
    return LayerCase(kind, body, (draw(shapes()),), data={0: positive}, seed=draw(SEEDS))


@layer_case("Power")
@st.composite
def powers(draw: Any, kind: str) -> LayerCase:
    power = draw(st.sampled_from([0, 1, 2, 3, 0.5, -1, -0.5]))
    scale, shift = draw(st.sampled_from([0, 1, 2, 0.5])), draw(st.sampled_from([0.5, 1, 2]))
    body = f"power_param {{ power: {power} scale: {scale} shift: {shift} }}"
    data = {0: positive if power not in (0, 1, 2, 3) or draw(st.booleans()) else wide}
    return LayerCase(kind, body, (draw(shapes()),), data=data, seed=draw(SEEDS))


@layer_case("PReLU")
@st.composite
def prelus(draw: Any, kind: str) -> LayerCase:
    body = f"prelu_param {{ {some_flags(draw, 'channel_shared')} }}"
    return LayerCase(kind, body, (draw(shapes(2)),), data={0: wide}, seed=draw(SEEDS))


@layer_case("Dropout")
@st.composite
def dropouts(draw: Any, kind: str) -> LayerCase:
    body = f"dropout_param {{ dropout_ratio: 0.7 {some_flags(draw, 'scale_train')} }}"
    return LayerCase(kind, body, (draw(shapes()),), seed=draw(SEEDS))


@layer_case("Softmax")
@st.composite
def softmaxes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return LayerCase(kind, f"softmax_param {{ axis: {axis} }}", (shape,), data={0: wide}, seed=draw(SEEDS))
