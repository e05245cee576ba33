"""Layers that pick, move or stretch pieces of their inputs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images, numbers_below, shapes


@layer_case("Crop")
@st.composite
def crops(draw: Any, kind: str) -> LayerCase:
    size = draw(shapes(2, 4))
    axis = draw(st.integers(0, len(size) - 1))
    count = draw(st.sampled_from([0, 1, len(size) - axis]))
    offsets = [draw(st.integers(0, 3)) for _ in range(count)]
    each = offsets * (len(size) - axis) if count == 1 else offsets or [0] * (len(size) - axis)
    source = [*size[:axis], *(n + a + draw(st.integers(0, 2)) for n, a in zip(size[axis:], each, strict=True))]
    other = (*(draw(st.integers(1, 3)) for _ in range(axis)), *size[axis:])
    place = draw(st.sampled_from([axis, axis - len(size)]))
    body = f"crop_param {{ axis: {place} {' '.join(f'offset: {n}' for n in offsets)} }}"
    return LayerCase(kind, body, (tuple(source), other), seed=draw(SEEDS))


@layer_case("CropCenter")
@st.composite
def crop_centers(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 4, 9))
    crops = [0, *(draw(st.integers(0, (n - 1) // 2)) for n in shape[1:])]
    body = "crop_center_param { " + " ".join(f"crop_size: {n}" for n in crops) + " }"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Filter")
@st.composite
def filters(draw: Any, kind: str) -> LayerCase:
    many = draw(st.lists(shapes(1, 3), min_size=1, max_size=2))
    samples, rank = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    picked = tuple((samples, *shape[1:]) for shape in many)
    selector = (samples, *[1] * (rank - 1))
    data = {len(many): lambda rng, shape: rng.choice([0, 0, 1, -2, 0.25], shape)}
    return LayerCase(kind, "", (*picked, selector), tops=len(many), data=data, seed=draw(SEEDS))


@layer_case("BatchReindex")
@st.composite
def batch_reindexes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    chosen = (draw(st.integers(1, 6)),)
    return LayerCase(kind, "", (shape, chosen), data={1: numbers_below(shape[0])}, seed=draw(SEEDS))


@layer_case("ShuffleChannel")
@st.composite
def shuffle_channels(draw: Any, kind: str) -> LayerCase:
    group, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = draw(images(1, 4, st.just(group * per_group)))
    return LayerCase(kind, f"shuffle_channel_param {{ group: {group} }}", (shape,), seed=draw(SEEDS))


@layer_case("PixelShuffle")
@st.composite
def pixel_shuffles(draw: Any, kind: str) -> LayerCase:
    r = draw(st.integers(1, 3))
    shape = draw(images(1, 4, st.integers(1, 3).map(lambda c: c * r * r)))
    return LayerCase(kind, f"pixelshuffle_param {{ upscale_factor: {r} }}", (shape,), seed=draw(SEEDS))


@layer_case("Reorg")
@st.composite
def reorgs(draw: Any, kind: str) -> LayerCase:
    s, reverse = draw(st.integers(1, 3)), draw(st.booleans())
    n, c, h, w = draw(images(1, 3, st.integers(1, 2)))
    shape = (n, c * s * s, h, w) if reverse else (n, c * s * s, h * s, w * s)
    return LayerCase(kind, f"reorg_param {{ stride: {s} reverse: {str(reverse).lower()} }}", (shape,), seed=draw(SEEDS))


@layer_case("Upsample")
@st.composite
def upsamples(draw: Any, kind: str) -> LayerCase:
    shape, (a, b) = draw(images(1, 4)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if draw(st.booleans()):
        return LayerCase(kind, f"upsample_param {{ scale_h: {a} scale_w: {b} }}", (shape,), seed=draw(SEEDS))
    height, width = shape[2] * a, shape[3] * b
    options = [f"scale_h: {a} scale_w: {b}", f"upsample_h: {height} upsample_w: {width}"]
    if a == b == 2 and shape[2] > 1:
        height -= 1
        options = ["scale: 2 pad_out_h: true"]
    places = {1: lambda rng, shape: rng.integers(0, height * width, shape)}
    body = f"upsample_param {{ {draw(st.sampled_from(options))} }}"
    return LayerCase(kind, body, (shape, shape), data=places, seed=draw(SEEDS))


@layer_case("Interp")
@st.composite
def interps(draw: Any, kind: str) -> LayerCase:
    shape = draw(images(3, 9))
    size, zoom, shrink = (
        f"height: {draw(st.integers(1, 12))} width: {draw(st.integers(1, 12))}",
        f"zoom_factor: {draw(st.integers(1, 3))}",
        f"shrink_factor: {draw(st.integers(1, 3))}",
    )
    how = draw(st.sampled_from([size, zoom, shrink, f"{zoom} {shrink}", f"{size} {zoom}", f"{size} {zoom} {shrink}"]))
    body = f"interp_param {{ {how} pad_beg: {draw(st.integers(-1, 0))} pad_end: {draw(st.integers(-1, 0))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))
