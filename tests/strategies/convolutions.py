"""Convolutions and their kin, and the products of a matrix."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images, numbers_below, repeated, shapes, some_flags


@st.composite
def windows(draw: Any, space: tuple[int, ...]) -> str:
    """kernel, stride and pad, in any of their spellings, that fit spatial extents."""
    rank = len(space)
    spelling = draw(st.sampled_from(["one", "list", "sides"] if rank == 2 else ["one", "list"]))
    count = 1 if spelling == "one" else rank
    kernel = [draw(st.integers(1, min(4, *space))) for _ in range(count)] if space else [1]
    stride = [draw(st.integers(1, 3)) for _ in range(count)]
    pad = [draw(st.integers(0, 2)) for _ in range(count)]
    if spelling == "sides":
        drawn = zip(("kernel", "stride", "pad"), (kernel, stride, pad), strict=True)
        return " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in drawn)
    return " ".join(map(repeated, ("kernel_size", "stride", "pad"), (kernel, stride, pad)))


@layer_case("Convolution", "Deconvolution")
@st.composite
def convolutions(draw: Any, kind: str) -> LayerCase:
    group, per_in, per_out = (draw(st.integers(1, 3)) for _ in range(3))
    batch = tuple(draw(st.lists(st.integers(1, 2), max_size=2)))
    space = tuple(draw(st.lists(st.integers(6, 8), max_size=3)))
    shape = (*batch, group * per_in, *space)
    axis = draw(st.sampled_from([len(batch), len(batch) - len(shape)]))
    dilation = repeated("dilation", draw(st.sampled_from([[], [1], [2]] if max(space, default=0) else [[]])))
    window = draw(windows(tuple((n + 1) // 2 for n in space)))
    if kind == "Deconvolution":
        window = window.replace("pad: 2", "pad: 0").replace("pad_h: 2", "pad_h: 0").replace("pad_w: 2", "pad_w: 0")
    body = (
        f"convolution_param {{ num_output: {group * per_out} group: {group} {window} "
        f"{dilation} axis: {axis} {some_flags(draw, 'bias_term', 'force_nd_im2col')} }}"
    )
    count = draw(st.integers(1, 2))
    return LayerCase(kind, body, (shape,) * count, tops=count, seed=draw(SEEDS))


@layer_case("ConvolutionDepthwise", "DepthwiseConvolution")
@st.composite
def depthwise_convolutions(draw: Any, kind: str) -> LayerCase:
    shape = draw(images(4, 9))
    body = f"convolution_param {{ num_output: {shape[1]} {draw(windows(shape[2:]))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Im2col")
@st.composite
def im2cols(draw: Any, kind: str) -> LayerCase:
    axis, rank = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    space = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True)]
    shape = (*(draw(st.integers(1, 2)) for _ in range(axis)), draw(st.integers(1, 3)), *space)
    fields = {"kernel_size": kernel, "dilation": dilation, "stride": [draw(st.integers(1, 3)) for _ in range(rank)]}
    fields["pad"] = [draw(st.integers(0, 2)) for _ in range(rank)]
    body = " ".join(f"{name}: {value}" for name, values in fields.items() for value in values)
    return LayerCase(kind, f"convolution_param {{ axis: {axis} {body} }}", (shape,), seed=draw(SEEDS))


@layer_case("InnerProduct")
@st.composite
def inner_products(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    flags = some_flags(draw, "bias_term", "transpose")
    flags += " normalize: true" if "transpose: true" not in flags and draw(st.booleans()) else ""
    body = f"inner_product_param {{ num_output: {draw(st.integers(1, 5))} axis: {axis} {flags} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Embed")
@st.composite
def embeds(draw: Any, kind: str) -> LayerCase:
    rows = draw(st.integers(1, 9))
    body = f"embed_param {{ num_output: {draw(st.integers(1, 4))} input_dim: {rows} {some_flags(draw, 'bias_term')} }}"
    return LayerCase(kind, body, (draw(shapes(1, 3)),), data={0: numbers_below(rows)}, seed=draw(SEEDS))
