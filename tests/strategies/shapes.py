"""Layers that give their inputs other shapes, or copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, shapes


@layer_case("Concat")
@st.composite
def concats(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 4))
    axis = draw(st.integers(0, len(shape) - 1))
    many = tuple((*shape[:axis], draw(st.integers(1, 4)), *shape[axis + 1 :]) for _ in range(draw(st.integers(1, 3))))
    spelling = draw(st.sampled_from([f"axis: {axis}", f"axis: {axis - len(shape)}", f"concat_dim: {axis}"]))
    return LayerCase(kind, f"concat_param {{ {spelling} }}", many, seed=draw(SEEDS))


@layer_case("Split")
@st.composite
def splits(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, "", (draw(shapes()),), tops=draw(st.integers(1, 3)), seed=draw(SEEDS))


@layer_case("Silence")
@st.composite
def silences(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, "", tuple(draw(st.lists(shapes(), min_size=1, max_size=3))), tops=0, seed=draw(SEEDS))


@layer_case("Tile")
@st.composite
def tiles(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    body = f"tile_param {{ axis: {axis} tiles: {draw(st.integers(1, 3))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Flatten")
@st.composite
def flattens(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 5))
    first, last = sorted(draw(st.integers(0, len(shape) - 1)) for _ in range(2))
    axis, end = (draw(st.sampled_from([place, place - len(shape)])) for place in (first, last))
    return LayerCase(kind, f"flatten_param {{ axis: {axis} end_axis: {end} }}", (shape,), seed=draw(SEEDS))


@layer_case("Reshape")
@st.composite
def reshapes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    start, stop = sorted(draw(st.integers(0, len(shape))) for _ in range(2))
    dims, left = [], int(np.prod(shape[start:stop]))
    for _ in range(draw(st.integers(0, 3))):
        dims.append(draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0])))
        left //= dims[-1]
    if left > 1 or not dims:
        dims.append(left)
    kept = [i for i, n in enumerate(dims) if start + i < len(shape) and shape[start + i] == n]
    for place in draw(st.lists(st.sampled_from(kept), unique=True)) if kept else []:
        dims[place] = 0
    if draw(st.booleans()):
        dims[draw(st.integers(0, len(dims) - 1))] = -1
    axis = draw(st.sampled_from([start, start - len(shape) - 1]))
    count = -1 if stop == len(shape) and draw(st.booleans()) else stop - start
    dim = " ".join(f"dim: {n}" for n in dims)
    body = f"reshape_param {{ shape {{ {dim} }} axis: {axis} num_axes: {count} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Slice")
@st.composite
def slices(draw: Any, kind: str) -> LayerCase:
    shape, axis, tops = list(draw(shapes(1, 4))), 0, draw(st.integers(1, 4))
    axis = draw(st.integers(0, len(shape) - 1))
    name = draw(st.sampled_from(["axis", "slice_dim"]))
    if tops > 1 and draw(st.booleans()):
        points = sorted(draw(st.lists(st.integers(1, 8), min_size=tops - 1, max_size=tops - 1, unique=True)))
        shape[axis] = points[-1] + draw(st.integers(1, 3))
    else:
        points, shape[axis] = [], tops * draw(st.integers(1, 3))
    place = axis - len(shape) if name == "axis" and draw(st.booleans()) else axis
    body = f"slice_param {{ {name}: {place} {' '.join(f'slice_point: {n}' for n in points)} }}"
    return LayerCase(kind, body, (tuple(shape),), tops=tops, seed=draw(SEEDS))


@layer_case("Permute")
@st.composite
def permutes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 5))
    order = draw(st.permutations(range(len(shape))))[: draw(st.integers(0, len(shape)))]
    return LayerCase(
        kind, "permute_param { " + " ".join(f"order: {n}" for n in order) + " }", (shape,), seed=draw(SEEDS)
    )


@layer_case("Transpose")
@st.composite
def transposes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 5))
    order = draw(st.permutations(range(len(shape))))
    return LayerCase(kind, f"transpose_param {{ {' '.join(f'dim: {n}' for n in order)} }}", (shape,), seed=draw(SEEDS))


@layer_case("Reverse")
@st.composite
def reverses(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    body = f"reverse_param {{ axis: {draw(st.integers(0, len(shape) - 1))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))
