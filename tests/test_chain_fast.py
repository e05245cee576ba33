"""The fast way of a chain on the CPU against Caffe's bits: convolutions, normalisation, pooling, products, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from tests.conftest import need

need("chainer")

from bridge.chain import freezing  # noqa: E402
from bridge.chain.functions import F, chainer, helper_memory, helper_parts, helper_rows  # noqa: E402
from bridge.chain.functions.helper_fast_convolution import FastConvolution  # noqa: E402
from bridge.chain.functions.helper_tail import NO_TAIL, Tail  # noqa: E402

GEOMETRIES = {  # inputs, outputs, groups, kernel, stride, pad, dilation, height
    "stem": (3, 8, 1, (3, 3), (2, 2), (1, 1), (1, 1), 17),
    "tiles": (64, 72, 1, (3, 3), (1, 1), (1, 1), (1, 1), 30),
    "tiles, uneven pads": (64, 72, 1, (3, 3), (1, 1), (0, 2), (1, 1), 30),
    "tiles in groups": (128, 128, 2, (3, 3), (1, 1), (1, 1), (1, 1), 29),
    "pointwise": (64, 32, 1, (1, 1), (1, 1), (0, 0), (1, 1), 9),
    "pointwise, stride": (64, 32, 1, (1, 1), (2, 2), (0, 0), (1, 1), 9),
    "pointwise, pad": (4, 8, 1, (1, 1), (1, 1), (1, 1), (1, 1), 5),
    "groups": (32, 32, 2, (5, 3), (1, 2), (2, 1), (1, 1), 12),
    "small groups": (8, 16, 2, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "depthwise": (16, 16, 16, (3, 3), (1, 1), (1, 1), (1, 1), 10),
    "depthwise, stride": (16, 16, 16, (3, 3), (2, 2), (1, 1), (1, 1), 11),
    "depthwise, dilation": (8, 8, 8, (3, 5), (1, 1), (2, 0), (2, 1), 11),
    "dilation": (6, 8, 1, (3, 3), (1, 1), (2, 2), (2, 2), 11),
    "gaps": (6, 4, 1, (2, 2), (3, 3), (0, 0), (1, 1), 10),
}


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both_ways(function: Callable[..., Any], *arrays: Any) -> list[tuple[Any, list[Any]]]:
    """The result, and the gradients of all arrays: with Caffe's bits, then the fast way."""
    found = []
    for fast in (False, True):
        inputs = [chainer.Variable(array) for array in arrays]
        with helper_parts.fast_way(fast):
            y = function(*inputs)
        y.grad = numbers(9, *y.shape)
        y.backward()
        found.append((y, [y.array, *(x.grad for x in inputs)]))
    return found


def assert_close(found: list[tuple[Any, list[Any]]], part: float = 2e-5) -> None:
    for expected, actual in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=part * np.abs(expected).max())


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_and_their_gradients(name: str, cut: bool) -> None:
    inputs, outputs, groups, kernel, stride, pad, dilation, height = GEOMETRIES[name]
    shift = numbers(5, outputs)

    def function(x: Any, W: Any, b: Any, factor: Any) -> Any:
        tail = Tail(factor, shift, True) if cut else NO_TAIL
        y = F.caffe_convolution(x, W, b, stride, pad, dilation, groups, tail)
        return y if cut else y * F.chainer.functions.broadcast_to(factor.reshape(1, -1, 1, 1), y.shape)

    arrays = (numbers(1, 4, inputs, height, height + 1), numbers(2, outputs, inputs // groups, *kernel))
    found = both_ways(function, *arrays, numbers(3, outputs), numbers(4, outputs))
    assert_close(found)


def test_small_groups_alone_keep_their_old_way() -> None:
    for name, (inputs, outputs, groups, kernel, stride, pad, dilation, height) in GEOMETRIES.items():
        x, W = chainer.Variable(numbers(1, 4, inputs, height, height)), numbers(2, outputs, inputs // groups, *kernel)
        with helper_parts.fast_way():
            y = F.caffe_convolution(x, chainer.Variable(W), None, stride, pad, dilation, groups)
        assert isinstance(y.creator, FastConvolution) == (name != "small groups"), name


def test_a_gradient_is_added_to_the_one_before() -> None:
    x, W = chainer.Variable(numbers(1, 2, 16, 6, 6)), chainer.Variable(numbers(2, 16, 16, 1, 1))
    y, given = x, numbers(9, 2, 16, 6, 6)
    with helper_parts.fast_way():
        for _ in range(2):
            y = F.caffe_convolution(y, W, None, (1, 1), (0, 0), (1, 1), 1)
    y.grad = given
    y.backward()
    rows, g = (array.transpose(0, 2, 3, 1).reshape(-1, 16) for array in (x.array, given))
    kernel = W.array[:, :, 0, 0]
    expected = g.T @ (rows @ kernel.T) + (g @ kernel).T @ rows
    np.testing.assert_allclose(W.grad[:, :, 0, 0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_relu() -> None:
    found = both_ways(F.relu, numbers(1, 2, 9, 7, 6))
    assert_close(found, 0)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_lrn(beta: float) -> None:
    found = both_ways(lambda x: F.local_response_normalization(x, 5, 1.0, 0.3, beta), numbers(1, 2, 9, 7, 6))
    assert_close(found, 2e-6)


def test_products_of_few_rows() -> None:
    found = both_ways(F.linear, numbers(1, 4, 600), numbers(2, 504, 600), numbers(3, 504))
    assert type(found[1][0].creator).__name__ == "FewRows"
    assert_close(found, 2e-6)


PARTS = {
    "one": (slice(0, 6),),
    "two": (slice(0, 2), slice(2, 6)),
    "three": (slice(0, 3), slice(3, 5), slice(5, 6)),
}


def in_parts(function: Callable[..., Any], parts: str, x: Any, *arrays: Any) -> list[Any]:
    """The results and the gradients of a batch, each image's as the process computes it that has the image."""
    found: list[list[Any]] = [[], []]
    for rows in PARTS[parts]:
        own = chainer.Variable(x[rows])
        with helper_parts.fast_way(), helper_rows.part_of_batch(rows, 6):
            y = function(own, *map(chainer.Variable, arrays))
            y.grad = numbers(9, 6, *y.shape[1:])[rows]
            y.backward()
        for kept, values in zip(found, (y.array, own.grad), strict=True):
            kept.append(values)
    return [np.concatenate(values) for values in found]


def assert_alike(function: Callable[..., Any], *arrays: Any) -> None:
    """An image has the same bits in each part of the batch."""
    whole = in_parts(function, "one", *arrays)
    for parts in PARTS:
        for expected, actual in zip(whole, in_parts(function, parts, *arrays), strict=True):
            assert actual.tobytes() == expected.tobytes(), parts


ALIKE = {
    "tiles of few images": (64, 72, 1, (3, 3), (1, 1), (1, 1), (1, 1), 11),
    "tiles of several images": (64, 64, 1, (3, 3), (1, 1), (1, 1), (1, 1), 24),
    "large windows": (16, 16, 1, (5, 5), (1, 1), (2, 2), (1, 1), 48),
    "several groups of images": (64, 64, 1, (1, 1), (1, 1), (0, 0), (1, 1), 60),
    "5 x 5": (8, 12, 1, (5, 5), (1, 1), (2, 2), (1, 1), 9),
    "one pixel": (64, 64, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
}


@pytest.mark.parametrize("name", [*GEOMETRIES, *ALIKE])
def test_processes_compute_a_convolution_of_an_image_as_one_does(name: str) -> None:
    inputs, outputs, groups, kernel, stride, pad, dilation, height = {**GEOMETRIES, **ALIKE}[name]
    assert_alike(
        lambda x, W, b: F.caffe_convolution(x, W, b, stride, pad, dilation, groups, Tail(None, None, True)),
        numbers(1, 6, inputs, height, height + 1),
        numbers(2, outputs, inputs // groups, *kernel),
        numbers(3, outputs),
    )


@pytest.mark.parametrize("weight", [(504, 600), (36, 20), (1000, 5000), (50, 1000)])
def test_processes_compute_products_of_an_image_as_one_does(weight: tuple[int, int]) -> None:
    assert_alike(F.linear, numbers(1, 6, weight[1]), numbers(2, *weight), numbers(3, weight[0]))


@pytest.mark.parametrize("images", [2, 5])
def test_several_rows_of_an_image_are_multiplied_together_with_it(images: int) -> None:
    """As with two batch axes: (6, 5) rows."""
    assert_alike(lambda x, W: F.linear(x, W, None, 2), numbers(1, 6, images, 600), numbers(2, 504, 600))


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_processes_normalise_an_image_as_one_does(beta: float) -> None:
    assert_alike(lambda x: F.local_response_normalization(x, 5, 1.0, 0.3, beta), numbers(1, 6, 9, 7, 7))


def test_second_derivatives() -> None:
    x, W = chainer.Variable(numbers(1, 2, 6, 5, 5)), chainer.Variable(numbers(2, 16, 6, 3, 3))
    found = []
    for fast in (False, True):
        with helper_parts.fast_way(fast):
            y = F.caffe_convolution(x, W, None, (1, 1), (1, 1), (1, 1), 1, Tail(None, None, True))
        (gx,) = chainer.grad([y], [x], [chainer.Variable(numbers(9, *y.shape))], enable_double_backprop=True)
        (second,) = chainer.grad([F.sum(gx**2)], [W])
        found.append(second.array)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5 * np.abs(found[0]).max())


NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 20 dim: 20 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 32 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 32 kernel_size: 3 pad: 1 group: 32 weight_filler { type: "xavier" } } }
layer { name: "scale2" type: "Scale" bottom: "conv2" top: "conv2" scale_param { bias_term: true } }
layer { name: "sum" type: "Eltwise" bottom: "pool1" bottom: "conv2" top: "sum" }
layer { name: "relu" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "mean" type: "Pooling" bottom: "sum" top: "mean" pooling_param { pool: AVE kernel_size: 10 } }
layer { name: "fc" type: "InnerProduct" bottom: "mean" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""


def built(freeze: tuple[str, ...] = ()) -> Any:
    chain = bridge.build_chain(assemble(None, prototxt.parse(NET)), seed=1)
    chain["bn1"].mean[...], chain["bn1"].variance[...] = numbers(1, 32), 1 + numbers(2, 32) ** 2
    chain["bn1"].scale_factor[...] = 2
    for name in ("scale1", "scale2"):
        chain[name].W.array[...], chain[name].b.array[...] = numbers(3, 32), numbers(4, 32)
    if freeze:
        freezing.freeze(chain, *freeze)
    return chain


def gradients(chain: Any, exact: bool) -> dict[str, Any]:
    chain.exact = exact
    chain.cleargrads()
    y = chain(numbers(7, 2, 3, 20, 20))
    y.grad = numbers(8, *y.shape)
    y.backward()
    return {"": y.array, **{path: param.grad for path, param in chain.namedparams() if param.grad is not None}}


@pytest.mark.parametrize("freeze", [("bn1",), ("bn1", "scale*"), ("conv*",), ()])
def test_a_net_and_its_gradients(freeze: tuple[str, ...]) -> None:
    """Frozen statistics and affine layers are computed with the convolution before; those of the batch are not."""
    expected, actual = (gradients(built(freeze), exact) for exact in (True, False))
    assert list(actual) == list(expected)
    for path, values in expected.items():
        np.testing.assert_allclose(actual[path], values, rtol=0, atol=2e-6 + 3e-5 * np.abs(values).max(), err_msg=path)


def test_a_tail_gives_the_blob_that_the_layers_gave() -> None:
    chain = built(("bn1",))
    fast = chain.run({"data": numbers(7, 2, 3, 20, 20)})
    assert isinstance(fast["conv1"].creator, FastConvolution)
    chain.exact = True
    exact = chain.run({"data": numbers(7, 2, 3, 20, 20)})
    assert list(fast) == list(exact)
    for name, values in exact.items():
        np.testing.assert_allclose(fast[name].array, values.array, rtol=0, atol=1e-5 * np.abs(values.array).max())


def test_a_part_of_a_tail_is_not_computed_beyond_the_last_layer() -> None:
    chain = built(("bn1",))
    stopped = chain.run({"data": numbers(7, 2, 3, 20, 20)}, stop=4)["conv1"].array
    assert stopped.min() < 0 == chain.run({"data": numbers(7, 2, 3, 20, 20)}, stop=5)["conv1"].array.min()


@pytest.mark.parametrize("setting", ["train", "enable_backprop"])
def test_a_pass_in_test_mode_or_without_gradients_has_caffes_bits(setting: str) -> None:
    chain, x = built(("bn1",)), numbers(7, 2, 3, 20, 20)
    with chainer.using_config(setting, False):
        mine = chain(x).array
        chain.exact = True
        assert chain(x).array.tobytes() == mine.tobytes()


def test_what_is_frozen_below_has_caffes_bits() -> None:
    """So a trunk's values can be kept: nothing of it is folded into a layer before that is frozen, too."""
    chain, x = built(("conv1", "bn1")), numbers(7, 2, 3, 20, 20)
    fast = chain.run({"data": x}, stop=3)["conv1"].array
    chain.exact = True
    assert chain.run({"data": x}, stop=3)["conv1"].array.tobytes() == fast.tobytes()


def test_threads_decide_about_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    need("threadpoolctl")
    found = []
    for number in (1, 3):
        monkeypatch.setattr(helper_parts, "_threads", lambda number=number: number)
        found.append({path: values.copy() for path, values in gradients(built(("bn1",)), False).items()})
    for path, values in found[0].items():
        assert values.tobytes() == found[1][path].tobytes(), path


def test_memory_is_taken_again_when_nothing_refers_to_it() -> None:
    shape = (1 << 10, 1 << 10)
    first = helper_memory.take(shape)
    place, view = first.ctypes.data, first[3:, ::2]
    del first
    others = [helper_memory.take(shape) for _ in range(3)]
    assert place not in [other.ctypes.data for other in others]  # the view refers to it
    del view
    assert helper_memory.take(shape).ctypes.data == place


def test_unused_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_memory, "_HELD", {})
    helper_memory.take((1 << 19,))
    for _ in range(2 * helper_memory._AGE):
        helper_memory.take((1 << 18,))
    assert list(helper_memory._HELD) in ([1 << 18], [1 << 19])  # the larger one may serve the smaller


@pytest.mark.parametrize("cut", [False, True])
def test_sums(cut: bool) -> None:
    shape = (2, 5, 6, 7)
    tail = Tail(None, None, cut)
    arrays = [numbers(seed, *shape) for seed in range(3)]
    assert_close(both_ways(lambda *terms: F.caffe_eltwise_sum(terms, tail), *arrays), 1e-7)


def test_one_array_twice_in_a_sum() -> None:
    assert_close(both_ways(lambda x: F.caffe_eltwise_sum([x, x], Tail(None, None, True)), numbers(1, 2, 5, 6, 7)), 1e-7)


def test_callers_at_a_time_leave_the_number_of_threads() -> None:
    need("threadpoolctl")
    blas = helper_parts._blas()
    before = blas.num_threads
    try:
        blas.set_num_threads(2)

        def caller() -> None:
            with helper_parts._one_thread_each():
                pass

        with ThreadPoolExecutor(1) as pool, helper_parts._one_thread_each():
            pool.submit(caller).result()
            assert blas.num_threads == 1
            assert helper_parts._threads() == 2
        assert blas.num_threads == 2 == helper_parts._threads()
    finally:
        blas.set_num_threads(before)
