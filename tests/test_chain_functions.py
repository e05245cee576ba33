"""Our functions for the CPU against Chainer's own: values, gradients, second derivatives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bridge.caffe_files import prototxt
from bridge.layers import build_layer
from bridge.testing import LayerCase
from tests.conftest import need
from tests.strategies import CASES

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def functions() -> tuple[Any, Any, Any]:
    """Chainer, its functions, and those that layers get."""
    need("chainer")
    from bridge.chain.functions import F, chainer

    return chainer, chainer.functions, F


def results(function: Callable[..., Any], arrays: list[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """The function's value, and its gradients by every array."""
    chainer, _, _ = functions()
    variables = [chainer.Variable(array) for array in arrays]
    y = function(*variables)
    y.grad = np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)
    y.backward()
    return [y.array, *(variable.grad for variable in variables)]


def agree(mine: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and a.shape == b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@st.composite
def convolutions(draw: Any, transposed: bool) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Arrays and options of a convolution or its transpose."""
    groups, per_in, per_out, batch = (draw(st.integers(1, 3)) for _ in range(4))
    kernel, stride, dilation = draw(PAIRS), draw(PAIRS), draw(PAIRS)
    pad = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    space = tuple(draw(st.integers(1, 9)) for _ in range(2))
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    sizes = list(zip(space, window, stride, pad, strict=True))
    if transposed:
        assume(all(s * (n - 1) + w - 2 * p > 0 for n, w, s, p in sizes))
    else:
        assume(all(n + 2 * p >= w for n, w, _, p in sizes))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    inputs, outputs = groups * per_in, groups * per_out
    weight = (inputs, per_out, *kernel) if transposed else (outputs, per_in, *kernel)
    shapes = [(batch, inputs, *space), weight] + ([(outputs,)] if draw(st.booleans()) else [])
    arrays = [rng.standard_normal(shape) for shape in shapes]
    options = {"stride": stride, "pad": pad, "dilation": dilation, "groups": groups}
    return arrays, options


@pytest.mark.parametrize("name", ["convolution", "deconvolution"])
@settings(max_examples=60)
@given(data=st.data())
def test_convolving_is_what_chainer_does(name: str, data: st.DataObject) -> None:
    arrays, options = data.draw(convolutions(name == "deconvolution"))
    mine, theirs = both(name, options)
    agree(results(mine, arrays), results(theirs, arrays))


def both(name: str, options: dict[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Our function of that name with these options, and Chainer's."""
    _, F, ours = functions()
    chainers = {"dilate" if key == "dilation" else key: value for key, value in options.items()}

    def mine(x: Any, W: Any, b: Any = None) -> Any:
        return getattr(ours, f"caffe_{name}")(x, W, b, **options)

    def theirs(x: Any, W: Any, b: Any = None) -> Any:
        return getattr(F, f"{name}_2d")(x, W, b, **chainers)

    return mine, theirs


@pytest.mark.parametrize("name", ["convolution", "deconvolution"])
@settings(max_examples=10)
@given(data=st.data())
def test_convolving_has_second_derivatives(name: str, data: st.DataObject) -> None:
    _, _, ours = functions()
    gradient_check = importlib.import_module("chainer.gradient_check")
    arrays, options = data.draw(convolutions(name == "deconvolution"))
    rng = np.random.default_rng(0)
    function = lambda x, W, b=None: getattr(ours, f"caffe_{name}")(x, W, b, **options)  # noqa: E731
    shape = function(*arrays).shape
    gradient_check.check_double_backward(
        function, tuple(arrays), rng.standard_normal(shape), tuple(rng.standard_normal(a.shape) for a in arrays),
        dtype=np.float64, atol=1e-4, rtol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["convolution", "deconvolution"])
@pytest.mark.parametrize("layout", ["F", "strided", "transposed"])
def test_convolving_takes_arrays_in_any_layout(name: str, layout: str) -> None:
    _, _, ours = functions()
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((4, 2, 3, 3))
    forms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "F": np.asfortranarray,
        "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "transposed": lambda a: a.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0),
    }
    options = {"stride": (1, 2), "pad": (1, 0), "dilation": (1, 1), "groups": 2}
    function = lambda x, W: getattr(ours, f"caffe_{name}")(x, W, None, **options)  # noqa: E731
    agree(results(function, [forms[layout](x), forms[layout](W)]), results(function, [x, W]))


def test_many_images_are_done_a_few_at_a_time() -> None:
    _, _, ours = functions()
    module: Any = importlib.import_module("bridge.chain.functions.convolution")
    x, W = np.random.default_rng(0).standard_normal((7, 2, 6, 6)), np.ones((3, 2, 3, 3))
    options = {"stride": (1, 1), "pad": (1, 1), "dilation": (1, 1), "groups": 1}
    function = lambda x, W: ours.caffe_convolution(x, W, None, **options)  # noqa: E731
    whole = results(function, [x, W])
    limit, module._COLUMNS = module._COLUMNS, 2 * 18 * 36 * 8
    try:
        agree(results(function, [x, W]), whole)
    finally:
        module._COLUMNS = limit


def test_no_images_are_convolved_to_none() -> None:
    _, _, ours = functions()
    options = {"stride": (1, 1), "pad": (0, 0), "dilation": (1, 1), "groups": 1}
    y, gx, gW = results(lambda x, W: ours.caffe_convolution(x, W, None, **options), [np.ones((0, 2, 5, 5)), np.ones((3, 2, 3, 3))])  # fmt: skip # noqa: E501
    assert y.shape == (0, 3, 3, 3)
    assert gx.shape == (0, 2, 5, 5)
    assert not gW.any()


# ---- pooling ----------------------------------------------------------------------------------


def pooling(case: LayerCase) -> Any:
    return build_layer(prototxt.parse(case.prototxt).messages("layer")[-1])


@settings(max_examples=150)
@given(case=CASES["Pooling"])
def test_pooling_is_what_chainer_makes_of_it(case: LayerCase) -> None:
    """Ours for the CPU, and Chainer's that serves on a GPU: windows, equal maxima, places, gradients."""
    _, F, _ = functions()
    from bridge.chain.functions import helper_windows as windows
    from bridge.chain.functions.pooling import max_by_chainer, sums_by_chainer

    layer, x = pooling(case), case.inputs()["in0"].astype(np.float64)
    axes = layer.axes(x.shape[2:])
    if layer.pool != "MAX":
        mine = results(lambda v: windows.WindowSum(axes).apply((v,))[0], [x])
        agree(mine, results(lambda v: sums_by_chainer(v, layer), [x]))
        return
    mine = results(lambda v: windows.MaxPooling(axes).apply((v,))[0], [x])
    agree(mine, results(lambda v: F.identity(_first(max_by_chainer(v, layer))), [x]))
    if len(layer.tops) > 1:
        places = windows.first_places(x, mine[0], axes)
        assert np.array_equal(places, max_by_chainer(x_variable(x), layer)[1].array)


@pytest.mark.parametrize("nothing", [-np.inf, np.nan])
def test_a_window_that_holds_nothing_gives_the_lowest_number(nothing: float) -> None:
    """Caffe starts from it and takes what is greater; no gradient goes into such a window."""
    functions()
    from bridge.chain.functions import helper_windows as windows

    layer = build_layer(
        prototxt.parse('type: "Pooling" bottom: "x" top: "y" pooling_param { kernel_size: 2 stride: 2 }')
    )
    x = np.full((1, 1, 4, 4), nothing, np.float32)
    x[0, 0, 3, 2] = -7
    axes = layer.axes(x.shape[2:])  # type: ignore[attr-defined]
    y, gx = results(lambda v: windows.MaxPooling(axes).apply((v,))[0], [x])
    assert y.ravel().tolist() == [np.finfo(np.float32).min] * 3 + [-7]
    assert windows.first_places(x, y, axes).ravel().tolist() == [-1, -1, -1, 14]
    assert np.flatnonzero(gx).tolist() == [14]


def _first(tops: Any) -> Any:
    return tops[0] if isinstance(tops, tuple) else tops


def x_variable(x: np.ndarray) -> Any:
    chainer, _, _ = functions()
    return chainer.Variable(x)


@settings(max_examples=20)
@given(case=CASES["Pooling"])
def test_pooling_has_second_derivatives(case: LayerCase) -> None:
    functions()
    from bridge.chain.functions import helper_windows as windows

    gradient_check = importlib.import_module("chainer.gradient_check")
    layer = pooling(case)
    rng = np.random.default_rng(0)
    x = rng.permutation(int(np.prod(case.shapes[0]))).reshape(case.shapes[0]).astype(np.float64)
    axes = layer.axes(x.shape[2:])
    assume(not any(axis.empty for axis in axes))
    node = windows.MaxPooling if layer.pool == "MAX" else windows.WindowSum
    shape = (*x.shape[:2], *(axis.count for axis in axes))
    gradient_check.check_double_backward(
        lambda v: node(axes).apply((v,))[0] ** 2, x, rng.standard_normal(shape), rng.standard_normal(x.shape),
        dtype=np.float64, atol=1e-3, rtol=1e-3,
    )  # fmt: skip


# ---- local response normalisation -------------------------------------------------------------


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    n=st.sampled_from([1, 3, 5, 7]),
    beta=st.sampled_from([0.75, 0.5, 1.0, 0.3]),
    k=st.sampled_from([1.0, 2.0, 0.5]),
)
def test_normalising_across_channels_is_what_chainer_does(
    shape: tuple[int, ...], n: int, beta: float, k: float
) -> None:
    _, F, ours = functions()
    x = np.random.default_rng(0).standard_normal(shape)
    mine = results(lambda v: ours.local_response_normalization(v, n, k, 0.1, beta), [x])
    agree(mine, results(lambda v: F.local_response_normalization(v, n, k, 0.1, beta), [x]))


def test_normalising_across_channels_has_caffes_steps() -> None:
    """Each as in CrossChannelForward_cpu and CrossChannelBackward_cpu; what OpenBLAS fuses is rounded once."""
    _, _, ours = functions()
    n, half, beta, one = 5, 2, 0.75, np.float32(1)
    rng = np.random.default_rng(0)
    x, gy = (rng.standard_normal((12, 50)).astype(np.float32) for _ in range(2))

    def fused(total: Any, terms: Any, factor: Any) -> Any:
        return (total.astype(np.float64) + terms.astype(np.float64) * float(factor)).astype(np.float32)

    def padded(terms: Any) -> Any:
        return np.pad(terms, ((half, half), (0, 0)))

    squares, alpha, scale = padded(x * x), one / np.float32(n), np.empty_like(x)
    total = np.ones(50, np.float32)
    for term in squares[: n - 1]:
        total = fused(total, term, alpha)
    for channel in range(12):
        total = fused(total, squares[channel + n - 1], alpha)
        total = fused(total, squares[channel - 1], -alpha) if channel else total
        scale[channel] = total
    power = (scale.astype(np.float64) ** -beta).astype(np.float32)
    y, gx = x * power, gy * power
    ratios, total = padded(gy * y / scale), np.zeros(50, np.float32)
    for term in ratios[: n - 1]:
        total = total + term
    for channel in range(12):
        total = total + ratios[channel + n - 1]
        gx[channel] = fused(gx[channel], total * x[channel], -np.float32(2 * beta / n))
        total = total - ratios[channel]
    variable, shape = ours.chainer.Variable(x.reshape(1, 12, 50, 1)), (1, 12, 50, 1)
    found = ours.local_response_normalization(variable, n, 1.0, 1 / n, beta)
    found.grad = gy.reshape(shape)
    found.backward()
    np.testing.assert_array_equal(found.array, y.reshape(shape))
    np.testing.assert_array_equal(variable.grad, gx.reshape(shape))


# ---- sums in Caffe's order --------------------------------------------------------------------


def twice(function: Callable[..., Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The gradients by every array that two passes leave together."""
    chainer, _, _ = functions()
    variables = [chainer.Variable(array) for array in arrays]
    for seed in range(2):
        y = function(*variables)
        y.grad = np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)
        y.backward()
    return [variable.grad for variable in variables]


@pytest.mark.parametrize("name", ["convolution", "deconvolution"])
@settings(max_examples=30)
@given(data=st.data())
def test_a_second_pass_adds_to_the_gradients_of_a_convolution(name: str, data: st.DataObject) -> None:
    arrays, options = data.draw(convolutions(name == "deconvolution"))
    mine, theirs = both(name, options)
    agree(twice(mine, arrays), twice(theirs, arrays))


@settings(max_examples=30)
@given(batch=st.integers(1, 40), inner=st.integers(1, 5), outputs=st.integers(1, 9), bias=st.booleans())
def test_a_second_pass_adds_to_the_gradients_of_a_product(batch: int, inner: int, outputs: int, bias: bool) -> None:
    _, F, ours = functions()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((batch, inner), (outputs, inner), (outputs,))][: 2 + bias]
    agree(twice(ours.linear, arrays), twice(F.linear, arrays))


def test_sums_over_many_positions_are_added_up_in_blocks() -> None:
    functions()
    from bridge.chain.functions.convolution import _blocks

    sizes = {n: [block.stop - block.start for block in _blocks(n)] for n in (0, 7, 384, 385, 576, 768, 1000, 1200)}
    assert sizes == {
        0: [], 7: [7], 384: [384], 385: [192, 193], 576: [288, 288], 768: [384, 384], 1000: [384, 312, 304],
        1200: [384, 384, 216, 216],
    }  # fmt: skip


# ---- exponentials -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    axis=st.integers(0, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_softmax_is_what_chainer_makes_of_it(shape: list[int], axis: int, dtype: Any) -> None:
    _, F, ours = functions()
    axis %= len(shape)
    x = 3 * np.random.default_rng(0).standard_normal(shape).astype(dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    for mine, theirs in zip(
        results(lambda v: ours.softmax(v, axis=axis), [x]), results(lambda v: F.softmax(v, axis=axis), [x]), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 4)])
@pytest.mark.parametrize("double", [False, True])
def test_the_loss_of_a_softmax_takes_arrays_in_any_layout(shape: tuple[int, ...], double: bool) -> None:
    chainer, F, ours = functions()
    layer = build_layer(prototxt.parse('name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "t" top: "l"'))
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal(shape).astype(np.float32), rng.integers(0, 5, (shape[0], *shape[2:]))
    expected = results(lambda v: F.softmax_cross_entropy(v, t.astype(np.int32)), [x])[1]
    for made in (x, np.asfortranarray(x), np.repeat(x, 2, -1)[..., ::2]):
        v = chainer.Variable(made)
        loss = ours.caffe_softmax_with_loss(v, chainer.as_variable(t.astype(np.float32)), layer)
        loss.grad = np.random.default_rng(0).standard_normal(()).astype(np.float32)
        loss.backward(enable_double_backprop=double)
        np.testing.assert_allclose(v.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "arguments"), [("sigmoid", ()), ("elu", (1.0,)), ("elu", (0.3,)), ("elu", (-0.5,))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_activation_is_what_chainer_makes_of_it(name: str, arguments: tuple[float, ...], dtype: Any) -> None:
    _, F, ours = functions()
    x = 5 * np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    x.flat[:3] = 0, -200, 200
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    for mine, theirs in zip(
        results(lambda v: getattr(ours, name)(v, *arguments), [x]),
        results(lambda v: getattr(F, name)(v, *arguments), [x]),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
        assert mine.dtype == theirs.dtype
