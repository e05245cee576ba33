"""The laws of grouped weights, and the shapes that an initializer fills."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from bridge.caffe_files import prototxt
from bridge.errors import ModelError, NotFoundError
from bridge.layers import build_layer
from bridge.schema import Blob, Layer
from bridge.schema.groups import spread_groups, unspread_groups
from bridge.schema.initializer import Initializer
from tests.conftest import need
from tests.strategies import weights as strategies

CONV = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 2 }'
PLAIN = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 }'
IP = 'type: "InnerProduct" inner_product_param { num_output: 4 }'
IP_T = 'type: "InnerProduct" inner_product_param { num_output: 4 transpose: true }'


def layer(text: str, *shapes: tuple[int, ...], dtype: Any = np.float32) -> Layer:
    rng = np.random.default_rng(0)
    blobs = [Blob.of(rng.standard_normal(shape).astype(dtype)) for shape in shapes]
    return build_layer(prototxt.parse(f'name: "l" bottom: "x" top: "y" {text}'), blobs)


def filled(of: Layer, role: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    array = np.full(shape, 7, dtype)
    of.initializer(role)(array)
    return array


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


# -- laws ----------------------------------------------------------------------------------


@given(strategies.grouped_weights())
def test_spreading_and_back_changes_no_bit(case: tuple[np.ndarray, int]) -> None:
    weight, group = case
    back = unspread_groups(spread_groups(weight, group), group)
    assert back.dtype == weight.dtype
    assert back.shape == weight.shape
    assert bits(back) == bits(weight)


@given(strategies.grouped_weights())
def test_a_spread_weight_is_zero_outside_its_blocks_and_nowhere_else(case: tuple[np.ndarray, int]) -> None:
    weight, group = case
    dense = spread_groups(weight, group)
    rows, columns = weight.shape[0] // group, weight.shape[1]
    for i in range(group):
        for j in range(group):
            block = dense[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            expected = weight[i * rows : (i + 1) * rows] if i == j else np.zeros_like(block)
            assert bits(block) == bits(expected)


@given(strategies.grouped_convolutions())
def test_a_grouped_convolution_is_its_groups_dense_convolutions(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    x, weight, group = case
    parts = zip(np.split(x, group, axis=1), np.split(weight, group), strict=True)
    apart = np.concatenate([correlate(part, kernel) for part, kernel in parts], axis=1)
    assert np.array_equal(correlate(x, spread_groups(weight, group)), apart)


@given(strategies.grouped_convolutions())
def test_a_grouped_deconvolution_is_its_groups_dense_deconvolutions(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    y, weight, group = case
    x = correlate(y, spread_groups(weight, group))  # an input with as many channels as the weight has rows
    parts = zip(np.split(x, group, axis=1), np.split(weight, group), strict=True)
    apart = np.concatenate([scatter(part, kernel) for part, kernel in parts], axis=1)
    assert np.array_equal(scatter(x, spread_groups(weight, group)), apart)


def correlate(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("nihwyx,oiyx->nohw", windows, weight)


def scatter(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    (n, _, height, width), (_, out, kh, kw) = x.shape, weight.shape
    y = np.zeros((n, out, height + kh - 1, width + kw - 1), x.dtype)
    for i in range(kh):
        for j in range(kw):
            y[:, :, i : i + height, j : j + width] += np.einsum("nihw,io->nohw", x, weight[:, :, i, j])
    return y


# -- what is no grouped weight -------------------------------------------------------------


@pytest.mark.parametrize("stray", [1e-30, np.nan, np.inf, -1.0])
def test_a_value_outside_the_blocks_is_refused_with_its_place(stray: float) -> None:
    dense = spread_groups(np.ones((4, 1, 2, 2), np.float32), 4)
    dense[2, 1, 0, 1] = stray
    with pytest.raises(ModelError, match=r"at \[2, 1, 0, 1\] lies outside the 4 blocks"):
        unspread_groups(dense, 4)


def test_minus_zero_outside_the_blocks_is_zero() -> None:
    weight = np.full((4, 1), np.nan, np.float32)
    dense = spread_groups(weight, 4)
    dense[0, 3] = -0.0
    assert bits(unspread_groups(dense, 4)) == bits(weight)


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (3, 3)])
def test_channels_that_do_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="do not divide into 2 groups"):
        unspread_groups(np.zeros(shape), 2)


def test_one_group_copies_nothing() -> None:
    weight = np.ones((2, 2))
    assert spread_groups(weight, 1) is weight
    assert unspread_groups(weight, 1) is weight


# -- initializers --------------------------------------------------------------------------


def test_fills_the_blobs_own_shape() -> None:
    conv = layer(CONV, (6, 2, 3, 3), (6,))
    assert bits(filled(conv, "weight", (6, 2, 3, 3))) == bits(conv.weight)
    assert bits(filled(conv, "bias", (6,))) == bits(conv.bias)


def test_fills_a_grouped_weights_dense_form() -> None:
    conv = layer(CONV, (6, 2, 3, 3), (6,))
    assert bits(filled(conv, "weight", (6, 4, 3, 3))) == bits(spread_groups(conv.weight, 2))


def test_fills_a_linear_from_a_grouped_convolution_over_the_whole_input() -> None:
    conv = layer(CONV, (6, 2, 3, 3), (6,))
    assert bits(filled(conv, "weight", (6, 36))) == bits(spread_groups(conv.weight, 2))
    with pytest.raises(ModelError):
        filled(conv, "weight", (6, 18))  # the blob's own values, but not what the layer computes


@pytest.mark.parametrize("shape", [(4, 12), (1, 1, 4, 12), (4, 12, 1, 1), (4, 3, 2, 2), (4, 3, 4)])
def test_fills_shapes_that_an_inner_product_can_have(shape: tuple[int, ...]) -> None:
    ip = layer(IP, (4, 12), (4,))
    assert bits(filled(ip, "weight", shape)) == bits(ip.weight)


def test_fills_from_legacy_shapes() -> None:
    ip = layer(IP, (1, 1, 4, 12), (1, 1, 1, 4))
    assert bits(filled(ip, "weight", (4, 12))) == bits(ip.weight)
    assert bits(filled(ip, "bias", (4,))) == bits(ip.bias)


def test_fills_a_linear_from_a_convolution() -> None:
    conv = layer(PLAIN, (6, 2, 3, 3), (6,))
    assert bits(filled(conv, "weight", (6, 18))) == bits(conv.weight)


@pytest.mark.parametrize("inputs", [12, 4])
def test_fills_a_linear_from_a_weight_that_is_stored_transposed(inputs: int) -> None:
    ip = layer(IP_T, (inputs, 4), (4,))
    assert np.array_equal(filled(ip, "weight", (4, inputs)), ip.weight.T)


def test_fills_the_stored_shape_of_a_transposed_weight() -> None:
    ip = layer(IP_T, (12, 4), (4,))
    assert np.array_equal(filled(ip, "weight", (12, 4)), ip.weight)


@pytest.mark.parametrize(
    ("text", "stored", "shape"),
    [
        (IP, (4, 12), (5, 12)),
        (IP, (4, 12), (12, 4)),
        (IP, (4, 12), (4, 3, 2, 3)),
        (IP, (4, 12), (48,)),
        (PLAIN, (6, 1, 3, 3), (1, 6, 3, 3)),
        (CONV, (6, 2, 3, 3), (6, 6, 3, 3)),
        ('type: "Deconvolution" convolution_param { num_output: 2 kernel_size: 3 }', (6, 2, 3, 3), (6, 18)),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_and_left_unfilled(
    text: str, stored: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    array, of = np.full(shape, 7, np.float32), layer(text, stored, (6,))
    with pytest.raises(ModelError, match=r"layer 'l' \(\w+\): blob '\w+': .* does not fit"):
        of.initializer(next(iter(of.blobs)))(array)
    assert np.all(array == 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_casts_to_the_arrays_dtype(dtype: Any) -> None:
    conv = layer(CONV, (6, 2, 3, 3), (6,), dtype=np.float64)
    assert bits(filled(conv, "weight", (6, 2, 3, 3), dtype)) == bits(conv.weight.astype(dtype))


def test_a_role_that_is_not_there_is_named_with_the_layer() -> None:
    with pytest.raises(NotFoundError, match=r"layer 'l' \(Convolution\): no blob 'gamma' \(blobs: weight, bias\)"):
        layer(CONV, (6, 2, 3, 3), (6,)).initializer("gamma")


def test_an_array_of_another_library_is_set() -> None:
    class Array:
        """As CuPy's: it takes no NumPy array by assignment, but has ``set``."""

        shape, dtype = (6,), np.dtype(np.float16)

        def set(self, values: np.ndarray) -> None:
            assert values.dtype == self.dtype
            self.values = values

    conv, array = layer(CONV, (6, 2, 3, 3), (6,)), Array()
    conv.initializer("bias")(array)
    assert np.array_equal(array.values, conv.bias.astype(np.float16))


def test_can_be_pickled_and_copied_with_the_link_that_keeps_it() -> None:
    original = Initializer(layer(CONV, (6, 2, 3, 3), (6,)), "weight")
    for twin in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
        assert bits(twin.shaped((6, 4, 3, 3))) == bits(original.shaped((6, 4, 3, 3)))


def test_serves_the_links_of_chainer() -> None:
    need("chainer")
    from bridge.compat import import_chainer

    L = import_chainer().links
    conv, ip = layer(CONV, (6, 2, 3, 3), (6,)), layer(IP, (4, 12), (4,))
    weight, bias = conv.initializer("weight"), conv.initializer("bias")
    grouped = L.Convolution2D(4, 6, 3, groups=2, initialW=weight, initial_bias=bias)
    dense = L.Convolution2D(4, 6, 3, initialW=weight, initial_bias=bias)
    late = L.Linear(None, 4, initialW=ip.initializer("weight"))
    late(np.zeros((1, 12), np.float32))
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)
    assert bits(grouped.W.array) == bits(conv.weight)
    assert bits(late.W.array) == bits(ip.weight)
    np.testing.assert_allclose(grouped(x).array, dense(x).array, 1e-5, 1e-5)


@pytest.mark.gpu
def test_fills_an_array_of_cupy() -> None:
    import cupy

    conv = layer(CONV, (6, 2, 3, 3), (6,))
    array = cupy.empty((6, 4, 3, 3), np.float32)
    conv.initializer("weight")(array)
    assert bits(cupy.asnumpy(array)) == bits(spread_groups(conv.weight, 2))


def test_values_are_freed_with_their_blob() -> None:
    values = np.zeros(3, np.float32)
    watched = weakref.ref(values)
    blob = Blob.of(values)
    twin = blob.reshaped((3, 1))
    assert twin.origin is blob.origin is blob
    gc.disable()  # a cycle would wait for it
    try:
        del values, blob, twin
        assert watched() is None
    finally:
        gc.enable()
