"""Products, dropout and other functions of the chain that compute little."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_chain_functions import agree, functions, results

# ---- functions that compute little ------------------------------------------------------------


@st.composite
def products(draw: Any) -> tuple[list[np.ndarray], int]:
    """Arrays of a matrix product in one of NumPy's layouts, and the number of batch axes."""
    batch, inner = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)), draw(st.integers(1, 5))
    outputs, axes = draw(st.integers(1, 4)), len(batch)
    space = draw(st.sampled_from([(inner,), (inner, 1), (1, inner, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = [(*batch, *space), (outputs, int(np.prod(space)))] + ([(outputs,)] if draw(st.booleans()) else [])
    layout = draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2]]))
    return [layout(rng.standard_normal(shape)) for shape in shapes], axes


@pytest.mark.parametrize("checked", [True, False])
@settings(max_examples=60)
@given(case=products())
def test_multiplying_is_what_chainer_does(checked: bool, case: tuple[list[np.ndarray], int]) -> None:
    chainer, F, ours = functions()
    arrays, axes = case
    with chainer.using_config("type_check", checked):
        mine = results(lambda *v: ours.linear(*v, n_batch_axes=axes), arrays)
    agree(mine, results(lambda *v: F.linear(*v, n_batch_axes=axes), arrays))


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_no_images_are_multiplied_to_none(batch: tuple[int, ...]) -> None:
    chainer, _, ours = functions()
    x, W = chainer.Variable(np.zeros((*batch, 3, 2), np.float32)), chainer.Variable(np.ones((4, 6), np.float32))
    assert ours.linear(x, W, n_batch_axes=len(batch)).shape == (*batch, 4)


def test_multiplying_has_second_derivatives() -> None:
    chainer, _, ours = functions()
    gradient_check = importlib.import_module("chainer.gradient_check")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((3, 4), (2, 4), (2,))]
    for checked in (True, False):
        with chainer.using_config("type_check", checked):
            gradient_check.check_double_backward(
                lambda x, W, b: ours.linear(x, W, b) ** 2, tuple(arrays), rng.standard_normal((3, 2)),
                tuple(rng.standard_normal(a.shape) for a in arrays), dtype=np.float64, atol=1e-4, rtol=1e-3,
            )  # fmt: skip


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    ratio=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    dtype=st.sampled_from([np.float32, np.float64, np.float16]),
    train=st.booleans(),
)
def test_dropping_without_gradients_gives_the_bits_that_it_gives_with_them(
    shape: list[int], ratio: float, dtype: Any, train: bool
) -> None:
    chainer, F, ours = functions()
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = []
    with chainer.using_config("train", train):
        for function, wanted in ((F.dropout, True), (ours.dropout, True), (ours.dropout, False)):
            np.random.seed(7)
            y = function(chainer.Variable(x, requires_grad=wanted), ratio)
            assert y.requires_grad == wanted
            found.append((y.array.dtype, y.array.tobytes(), np.random.random()))
    assert found[0] == found[1] == found[2]


def counting() -> Any:
    """A hook of Chainer's that counts the calls of functions there and back."""
    chainer, _, _ = functions()

    class Counting(chainer.FunctionHook):  # type: ignore[misc]
        name = "Counting"
        forward = backward = 0

        def forward_postprocess(self, function: Any, in_data: Any) -> None:
            self.forward += 1

        def backward_postprocess(self, function: Any, in_data: Any, out_grad: Any) -> None:
            self.backward += 1

    return Counting()


def test_a_hook_sees_every_function_also_where_types_are_not_checked() -> None:
    chainer, _, ours = functions()
    x = np.ones((2, 3), np.float32)
    with chainer.using_config("type_check", False), counting() as hook:
        results(lambda v: ours.linear(v, chainer.Variable(x)), [x])
    assert (hook.forward, hook.backward) == (1, 1)


def test_without_a_wish_for_gradients_there_is_no_graph() -> None:
    chainer, _, ours = functions()
    x = np.ones((2, 3), np.float32)
    with chainer.using_config("type_check", False):
        kept = ours.linear(chainer.Variable(x), chainer.Variable(x))
        free = ours.linear(chainer.Variable(x, requires_grad=False), chainer.Variable(x, requires_grad=False))
        with chainer.no_backprop_mode():
            off = ours.linear(chainer.Variable(x), chainer.Variable(x))
    assert kept.creator_node is not None
    assert (free.creator_node, off.creator_node) == (None, None)
    assert not free.requires_grad
