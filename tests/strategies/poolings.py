"""Poolings."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images, numbers_below


@layer_case("Pooling")
@st.composite
def poolings(draw: Any, kind: str) -> LayerCase:
    shape = draw(images(1, 9))
    pool = draw(st.sampled_from(["MAX", "AVE", "STOCHASTIC"]))
    data = {0: numbers_below(4)} if draw(st.booleans()) else {}  # equal values, of which the first is the maximum
    common = {"tops": draw(st.integers(1, 2)) if pool == "MAX" else 1, "data": data, "seed": draw(SEEDS)}
    if draw(st.integers(0, 4)) == 0:
        return LayerCase(kind, f"pooling_param {{ pool: {pool} global_pooling: true }}", (shape,), **common)
    kernel, stride = ([draw(st.integers(1, 4)) for _ in range(2)] for _ in range(2))
    pad = [0, 0] if pool == "STOCHASTIC" else [draw(st.integers(0, k - 1)) for k in kernel]
    assume(all(n + 2 * p - k > -s for n, k, s, p in zip(shape[2:], kernel, stride, pad, strict=True)))
    mode = draw(st.sampled_from(["CEIL", "FLOOR"]))
    assume(mode == "CEIL" or all(n + 2 * p >= k for n, k, p in zip(shape[2:], kernel, pad, strict=True)))
    if kernel[0] == kernel[1] and stride[0] == stride[1] and pad[0] == pad[1]:
        window = f"kernel_size: {kernel[0]} stride: {stride[0]} pad: {pad[0]}"
    else:
        drawn = zip(("kernel", "stride", "pad"), (kernel, stride, pad), strict=True)
        window = " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in drawn)
    said = draw(st.sampled_from([f"round_mode: {mode}", f"ceil_mode: {str(mode == 'CEIL').lower()}"]))
    return LayerCase(kind, f"pooling_param {{ pool: {pool} {window} {said} }}", (shape,), **common)


@layer_case("SPP")
@st.composite
def pyramids(draw: Any, kind: str) -> LayerCase:
    height = draw(st.integers(1, 4))
    bins = 2 ** (height - 1)
    side = st.integers(bins, 13).filter(lambda n: _fits_bins(n, height))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(side), draw(side))
    body = f"spp_param {{ pyramid_height: {height} pool: {draw(st.sampled_from(['MAX', 'AVE']))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


def _fits_bins(side: int, height: int) -> bool:
    """Whether each level's pad is smaller than its kernel, as Caffe demands."""
    kernels = [(2**level, -(-side // 2**level)) for level in range(height)]
    return all((kernel * bins - side + 1) // 2 < kernel for bins, kernel in kernels)
