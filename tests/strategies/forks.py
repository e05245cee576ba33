"""Layers that only forks of Caffe have, pruned and quantised twins of others among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images, shapes, some_flags

_MASK: dict[str, Callable[[Any, Any], Any]] = {
    role: lambda rng, shape: rng.integers(0, 2, shape) for role in ("weight_mask", "bias_mask")
}


@layer_case("CConvolution", "DNSConvolution", "INQConvolution", "ConvolutionRistretto", "FQConvolution")
@st.composite
def convolution_twins(draw: Any, kind: str) -> LayerCase:
    group, per_in, per_out, kernel = (draw(st.integers(1, 3)) for _ in range(4))
    shape = (draw(st.integers(1, 2)), group * per_in, draw(st.integers(4, 6)), draw(st.integers(4, 6)))
    window = f"kernel_size: {kernel} stride: {draw(st.integers(1, 2))} pad: {draw(st.integers(0, 1))}"
    body = (
        f"convolution_param {{ num_output: {group * per_out} group: {group} {window} {some_flags(draw, 'bias_term')} }}"
    )
    return LayerCase(kind, f"{body} {_quantised(draw, kind)}", (shape,), blobs=_twin_blobs(draw), seed=draw(SEEDS))


@layer_case("CInnerProduct", "DNSInnerProduct", "INQInnerProduct", "FcRistretto", "FQInnerProduct")
@st.composite
def inner_product_twins(draw: Any, kind: str) -> LayerCase:
    body = (
        f"inner_product_param {{ num_output: {draw(st.integers(1, 4))} {some_flags(draw, 'bias_term', 'transpose')} }}"
    )
    blobs = _twin_blobs(draw)
    return LayerCase(kind, f"{body} {_quantised(draw, kind)}", (draw(shapes(2, 4)),), blobs=blobs, seed=draw(SEEDS))


def _quantised(draw: Any, kind: str) -> str:
    """Formats for Ristretto's layers, the output's so fine that a sum in another order does not matter."""
    if not kind.endswith("Ristretto"):
        return ""
    bits = draw(st.sampled_from([6, 8]))
    return (
        f"quantization_param {{ bw_layer_in: {bits} fl_layer_in: 4 bw_params: {bits} "
        f"fl_params: {draw(st.integers(3, 5))} bw_layer_out: 32 fl_layer_out: {draw(st.integers(10, 12))} }}"
    )


def _twin_blobs(draw: Any) -> dict[str, Any]:
    levels = draw(st.sampled_from([[8, 0, 0, 0], [9, 0, 0, 0], [16, 0.125, -8, 7]]))
    return {**_MASK, "levels": lambda rng, shape: np.array(levels)}


@layer_case("GRN")
@st.composite
def grns(draw: Any, kind: str) -> LayerCase:
    return LayerCase(
        kind, draw(st.sampled_from(["", "grn_param { bias: 0.5 }"])), (draw(images(1, 4)),), seed=draw(SEEDS)
    )


@layer_case("BilinearInterpolate")
@st.composite
def bilinear_interpolations(draw: Any, kind: str) -> LayerCase:
    size = draw(st.sampled_from(["dst_h: 7 dst_w: 4", "dst_h: 3", "scale_factor: 2", "scale_factor: 1.5", "dst_w: 9"]))
    body = f"bilinear_interpolate_param {{ {size} {some_flags(draw, 'align_corners')} }}"
    return LayerCase(kind, body, (draw(images(2, 6)),), seed=draw(SEEDS))


@layer_case("Resample")
@st.composite
def resamplings(draw: Any, kind: str) -> LayerCase:
    n, c, h, w = draw(images(2, 6))
    how = draw(st.sampled_from(["NEAREST", "LINEAR", "CUBIC"]))
    factor = draw(st.sampled_from([1, 2, 3]))
    rows, columns = (
        (h * factor, w * factor) if how == "NEAREST" else (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    )
    size = (n, c, rows, columns)
    second = draw(st.booleans())
    fields = "" if second else f"height: {rows} width: {columns}"
    body = f"resample_param {{ type: {how} {fields} {some_flags(draw, 'antialias')} }}"
    return LayerCase(kind, body, ((n, c, h, w), size) if second else ((n, c, h, w),), seed=draw(SEEDS))


@layer_case("spatial_dropout.SpatialDropoutLayer")
@st.composite
def spatial_dropouts(draw: Any, kind: str) -> LayerCase:
    module, layer = kind.split(".")
    text = f"{{'phase': 'TEST', 'p': '{draw(st.sampled_from(['0.1', '0.01', '.5']))}'}}"
    body = f"""python_param {{ module: "{module}" layer: "{layer}" param_str: "{text}" }}"""
    return LayerCase("Python", body, (draw(shapes(1, 4)),), seed=draw(SEEDS))


@layer_case("PriorBoxClustered")
@st.composite
def clustered_prior_boxes(draw: Any, kind: str) -> LayerCase:
    sides = draw(st.lists(st.tuples(*[st.floats(1, 90).map(lambda x: round(x, 1))] * 2), min_size=1, max_size=3))
    boxes = " ".join(f"width: {width} height: {height}" for width, height in sides)
    extra = draw(st.sampled_from(["", "variance: 0.2", "clip: true img_size: 80", "step: 8", "step_h: 16 step_w: 7.5"]))
    body = f"prior_box_param {{ {boxes} {extra} offset: {draw(st.sampled_from([0.5, 0.25]))} }}"
    return LayerCase(kind, body, (draw(images(1, 4)), draw(images(20, 60))))
