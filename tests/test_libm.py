"""``expf`` and ``powf`` against the C library's own, bit for bit."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.chain.libm import expf, powf


def library(name: str, arguments: int) -> Callable[..., float]:
    """A function of the C library, where that is a glibc that computes it as ours does."""
    kind, version = platform.libc_ver()
    if kind != "glibc" or tuple(map(int, version.split("."))) < (2, 28):
        pytest.skip("the C library is not glibc 2.28 or later")
    function: Any = getattr(ctypes.CDLL("libm.so.6"), name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * arguments
    return lambda *x: float(function(*x))


def equal(found: np.ndarray, expected: list[float]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(expected))


@settings(max_examples=300)
@given(x=st.lists(st.floats(-110, 88, width=32), min_size=1))
def test_exponentials(x: list[float]) -> None:
    equal(expf(np.float32(x)), list(map(library("expf", 1), x)))


def test_exponentials_of_no_finite_numbers() -> None:
    equal(expf(np.float32([-np.inf, np.nan, -1e30, -0.0])), [0, np.nan, 0, 1])


@settings(max_examples=300)
@given(x=st.lists(st.floats(0, 2.0**60, width=32), min_size=1), y=st.sampled_from([0.5, 2.0, 0.75, 1.5, 3.0]))
def test_powers(x: list[float], y: float) -> None:
    x = [value for value in x if value**y < 3e38] or [0.0]
    power = library("powf", 2)
    equal(powf(np.float32(x), y), [power(value, y) for value in x])


@settings(max_examples=100)
@given(x=st.lists(st.floats(2.0**-30, 2.0**30, width=32), min_size=1))
def test_negative_powers(x: list[float]) -> None:
    power = library("powf", 2)
    equal(powf(np.float32(x), -0.75), [power(value, -0.75) for value in x])


def test_many_at_random() -> None:
    rng = np.random.default_rng(0)
    x = np.float32(np.exp(rng.uniform(-40, 20, 20_000)))
    exponential, power = library("expf", 1), library("powf", 2)
    equal(expf(-x), [exponential(-value) for value in x])
    for y in (0.5, 2.0):
        equal(powf(x, y), [power(value, y) for value in x])


def test_arrays_of_any_layout() -> None:
    x = np.asfortranarray(np.random.default_rng(0).uniform(0.1, 2, (3, 4, 5)).astype(np.float32))
    for function in (expf, lambda v: powf(v, 0.5)):
        np.testing.assert_array_equal(function(x), function(np.ascontiguousarray(x)))
        np.testing.assert_array_equal(function(x[::2]), function(x)[::2])


def test_an_array_without_axes_is_one_value() -> None:
    value = np.array(2.5, np.float32)
    assert expf(value).shape == powf(value, 0.5).shape == ()
    assert expf(value) == expf(value.reshape(1))[0]
    assert powf(value, 0.5) == powf(value.reshape(1), 0.5)[0]
