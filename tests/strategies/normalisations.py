"""Normalisations, and the scales and shifts that follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images, positive, shapes, some_flags


@layer_case("LRN")
@st.composite
def lrns(draw: Any, kind: str) -> LayerCase:
    region = draw(st.sampled_from(["ACROSS_CHANNELS", "WITHIN_CHANNEL"]))
    drawn = {"alpha": draw(st.floats(0.01, 2)), "beta": draw(st.floats(0.1, 1)), "k": draw(st.floats(0.5, 3))}
    numbers = " ".join(f"{name}: {value:.4f}" for name, value in drawn.items())
    body = f"lrn_param {{ local_size: {draw(st.sampled_from([1, 3, 5, 7]))} norm_region: {region} {numbers} }}"
    return LayerCase(kind, body, (draw(images(1, 7)),), seed=draw(SEEDS))


@layer_case("BatchNorm")
@st.composite
def batch_norms(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 5, 4))
    factor = draw(st.sampled_from([0.0, 1.0, 999.98]))
    blobs = {"variance": positive, "scale_factor": lambda rng, shape: np.full(shape, factor)}
    by_batch = shape[0] > 1 and draw(st.booleans())
    flags = "use_global_stats: false" if by_batch else some_flags(draw, "scale_bias")
    # without a large eps the error of a variance near 0 would be all that is seen
    eps = draw(st.sampled_from([1e-3, 0.1] if by_batch else [1e-7, 1e-5, 1e-3, 0.1]))
    return LayerCase(kind, f"batch_norm_param {{ {flags} eps: {eps} }}", (shape,), blobs=blobs, seed=draw(SEEDS))


@layer_case("BN")
@st.composite
def bns(draw: Any, kind: str) -> LayerCase:
    body = draw(
        st.sampled_from(
            [
                "",
                "bn_param { eps: 0.001 frozen: true slope_filler { type: 'constant' value: 1 } }",
                "bn_param { var_eps: 0.001 moving_average: true }",
                "bn_param { var_eps: 0.001 decay: 0.1 }",
                "bn_param { bn_mode: INFERENCE }",
                "bn_param { bn_mode: LEARN }",
            ]
        )
    )
    shape = draw(st.tuples(st.integers(2, 3), st.integers(1, 5), st.integers(2, 6), st.integers(2, 6)))
    return LayerCase(kind, body, (shape,), blobs={"variance": positive}, seed=draw(SEEDS))


@layer_case("MVN")
@st.composite
def mvns(draw: Any, kind: str) -> LayerCase:
    flags = some_flags(draw, "normalize_variance", "across_channels")
    body = f"mvn_param {{ {flags} eps: {draw(st.sampled_from([1e-5, 1e-2, 1]))} }}"
    return LayerCase(kind, body, (draw(shapes(1, 4)),), seed=draw(SEEDS))


@layer_case("Normalize")
@st.composite
def normalizes(draw: Any, kind: str) -> LayerCase:
    if draw(st.integers(0, 4)) == 0:
        return LayerCase(kind, "", (draw(images()),), seed=draw(SEEDS))
    flags = " ".join(f"{name}: {str(draw(st.booleans())).lower()}" for name in ("across_spatial", "channel_shared"))
    body = f"norm_param {{ {flags} eps: {draw(st.sampled_from(['1e-10', '0.01']))} }}"
    return LayerCase(kind, body, (draw(st.one_of(images(), shapes(2, 3))),), seed=draw(SEEDS))


@layer_case("L2Normalization", "L2Normalize", "L2Norm")
@st.composite
def l2_normalizations(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, "", (draw(shapes(2, 4)),), seed=draw(SEEDS))


@layer_case("Scale", "Bias")
@st.composite
def scales(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    axis = draw(st.integers(0, len(shape) - 1))
    count = draw(st.integers(0, len(shape) - axis))
    field, flags = ("scale_param", some_flags(draw, "bias_term")) if kind == "Scale" else ("bias_param", "")
    axis_text = f"axis: {draw(st.sampled_from([axis, axis - len(shape)]))}"
    if draw(st.booleans()):
        own = shape[axis : axis + count]
        return LayerCase(kind, f"{field} {{ {axis_text} {flags} }}", (shape, own), seed=draw(SEEDS))
    body = f"{field} {{ {axis_text} num_axes: {draw(st.sampled_from([count, -1]))} {flags} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))
