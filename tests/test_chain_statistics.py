"""Running statistics of a built chain, in training and in a test, as Caffe moves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from tests.conftest import need
from tests.test_chain import built, equal, state


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


# ---- Caffe's running statistics ---------------------------------------------------------------


def bn_net(params: str, shape: tuple[int, ...]) -> str:
    dims = " ".join(f"dim: {n}" for n in shape)
    return f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}
    layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param {{ {params} }} }}
    """


def reference(
    batches: list[np.ndarray], fraction: float, eps: float
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray, float]]:
    """BatchNorm in training, loop by loop as batch_norm_layer.cpp has it.

    (The Caffe that ``tox run -e caffe`` installs uses stored statistics in training too, and so is no judge.)
    """
    channels = batches[0].shape[1]
    mean, variance, factor, tops = np.zeros(channels), np.zeros(channels), 0.0, []
    for x in batches:
        x = x.astype(np.float64)
        m = x.size // channels
        top = np.empty_like(x)
        factor = factor * fraction + 1
        for c in range(channels):
            values = x[:, c]
            own = values.sum() / m
            spread = ((values - own) ** 2).sum() / m
            mean[c] = mean[c] * fraction + own
            variance[c] = variance[c] * fraction + (m / (m - 1) if m > 1 else 1) * spread
            top[:, c] = (values - own) / np.sqrt(spread + eps)
        tops.append(top)
    return tops, (mean, variance, factor)


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    fraction=st.sampled_from([0.999, 0.9, 0.5, 0.0]),
    eps=st.sampled_from([1e-5, 1e-2]),
    flag=st.sampled_from(["", "use_global_stats: false"]),
    steps=st.integers(1, 3),
)
def test_training_moves_the_statistics_as_in_caffe(
    shape: tuple[int, ...], fraction: float, eps: float, flag: str, steps: int
) -> None:
    chain = built(bn_net(f"moving_average_fraction: {fraction} eps: {eps} {flag}", shape))
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal(shape) * 2 + 1).astype("f") for _ in range(steps)]
    tops, (mean, variance, factor) = reference(batches, fraction, eps)
    for x, expected in zip(batches, tops, strict=True):
        np.testing.assert_allclose(chain(x).array, expected, rtol=1e-4, atol=1e-4)
    link = chain.child("bn")
    np.testing.assert_allclose(link.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(link.variance, variance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(link.scale_factor, [factor], rtol=1e-6)
    assert {array.dtype for array in (link.mean, link.variance, link.scale_factor)} == {np.dtype("f")}
    check_test_mode(chain, batches[0], flag, eps)


def check_test_mode(chain: Any, x: np.ndarray, flag: str, eps: float) -> None:
    """In test mode, and frozen in training, nothing moves, and the sums divided by the factor count."""
    from bridge.chain.functions import chainer

    before, link = state(chain), chain.child("bn")
    with chainer.using_config("train", False):
        tested = chain(x).array
    bridge.freeze(chain, "bn")
    frozen = chain(x).array
    assert equal(state(chain), before)
    assert np.array_equal(tested, frozen)
    if not flag:
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance = ((link.mean / link.scale_factor), (link.variance / link.scale_factor))
        expected = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + eps)
        np.testing.assert_allclose(tested, expected, rtol=1e-3, atol=1e-4)


def test_global_statistics_in_training_stay_as_they_are() -> None:
    chain = built(bn_net("use_global_stats: true", (4, 3)))
    chain.child("bn").scale_factor[...] = 2
    chain.child("bn").variance[...] = 8
    before = state(chain)
    x = np.float32(np.arange(12).reshape(4, 3))
    np.testing.assert_allclose(chain(x).array, x / np.sqrt(4 + 1e-5), rtol=1e-6)
    assert equal(state(chain), before)
