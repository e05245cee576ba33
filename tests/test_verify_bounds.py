"""The bounds of ``bridge verify``: wide enough for what two correct engines do, and no wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bridge.schema import Net
from bridge.verification.compare import metrics
from bridge.verification.outputs import Comparison, Side, engine_side
from bridge.verification.results import TopResult
from bridge.verification.segments import Place, Runner
from bridge.verification.tolerance import Given, Tolerances, fallback
from tests.conftest import need
from tests.nets import make, random_inputs


def net_of(body: str, *shape: int) -> Net:
    """A net of one layer that reads ``x`` and writes ``y``."""
    extents = " ".join(f"dim: {extent}" for extent in shape)
    return make(
        f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {extents} }} }} }}'
        f'layer {{ name: "l" bottom: "x" top: "y" {body} }}'
    )


def judge(net: Net, a: Side, b: Side, *, seed: int = 0, isolate: bool = False) -> TopResult:
    runner = Runner(net, "onnxruntime", {})
    with np.errstate(all="ignore"):
        return Comparison(net, runner, a, b, given=Tolerances(), isolate=isolate, seed=seed).run().tops[-1]


def judge_values(net: Net, x: Any, change: Any, seed: int = 0) -> TopResult:
    """ONNX Runtime's result for ``x`` against the same with a change."""
    a = engine_side("onnxruntime", net, {"x": np.asarray(x, np.float32)}, {})
    place = (len(net.layers) - 1, 0)
    b = Side("changed", {**a.values, place: np.asarray(change(a.values[place]), np.float32)})
    return judge(net, a, b, seed=seed)


LONG = [
    ('type: "Reduction" reduction_param { operation: SUM }', (2, 3, 300, 300)),
    ('type: "Reduction" reduction_param { operation: ASUM }', (2, 3, 300, 300)),
    ('type: "Reduction" reduction_param { operation: SUMSQ coeff: -2 }', (2, 3, 300, 300)),
    ('type: "Reduction" reduction_param { operation: MEAN axis: 1 }', (2, 3, 300, 300)),
    ('type: "SPP" spp_param { pyramid_height: 2 pool: AVE }', (1, 2, 300, 300)),
    ('type: "Normalize" norm_param { across_spatial: true }', (1, 64, 100, 100)),
    ('type: "L2Normalize"', (1, 100_000)),
    ('type: "Interp" interp_param { height: 700 width: 700 }', (1, 2, 250, 250)),
]


@pytest.mark.parametrize(("body", "shape"), LONG, ids=[body.split('"')[1] for body, _ in LONG])
def test_sums_of_many_terms_and_places_in_large_images_raise_no_false_alarm(body: str, shape: tuple[int, ...]) -> None:
    need("onnxruntime", "chainer")
    net = net_of(body, *shape)
    for seed in range(3):
        inputs = random_inputs(net, seed)
        sides = [engine_side(name, net, inputs, {}) for name in ("onnxruntime", "chainer")]
        result = judge(net, *sides, seed=seed)
        assert result.status == "same", str(result)
        assert result.metrics is not None
        assert result.metrics.mismatches == 0, str(result.metrics)


@pytest.mark.parametrize("classes", [1000, 21_841])
def test_a_softmax_of_many_classes_with_even_scores_raises_no_false_alarm(classes: int) -> None:
    need("onnxruntime", "chainer")
    net = net_of('type: "Softmax"', 1, classes)
    for seed in range(3):
        inputs = {"x": random_inputs(net, seed)["x"] * np.float32(1e-3)}
        sides = [engine_side(name, net, inputs, {}) for name in ("onnxruntime", "chainer")]
        result = judge(net, *sides, seed=seed)
        assert result.status == "same", str(result)


def test_a_given_tolerance_is_none_for_what_is_not_finite() -> None:
    bound = Given(0.5, 0.25).bound(np.float32([np.nan, np.inf, -np.inf, -1])).values
    np.testing.assert_array_equal(bound, [0, 0, 0, 0.75])


@pytest.mark.parametrize("body", ['type: "Reduction" reduction_param { operation: SUMSQ }', 'type: "L2Normalize"'])
def test_a_bound_is_no_wider_than_the_terms_demand(body: str) -> None:
    need("onnxruntime")
    net = net_of(body, 1, 1000)
    result = judge_values(net, random_inputs(net)["x"], lambda y: y * (1 + 1e-4))
    assert result.status == "different"


def test_the_bound_of_a_sum_does_not_overflow() -> None:
    need("onnxruntime")
    net = net_of('type: "Reduction"', 4)
    x = [3e38, -3e38, 1, 0]  # the magnitudes add up to more than float32 holds; 0 and 1 are both sums of this
    assert judge_values(net, x, lambda y: 1 - y).status == "same"
    far = judge_values(net, x, lambda y: y + 1e34)
    assert far.status == "different"
    assert far.metrics is not None
    assert 1e31 < far.metrics.bound < 1e33


@pytest.mark.parametrize("seed", range(8))
def test_a_movement_out_of_range_is_made_the_other_way(seed: int) -> None:
    need("onnxruntime")
    net = net_of('type: "Exp"', 1)
    assert judge_values(net, [88.722], lambda y: y * np.float32(1 - 3e-6), seed).status == "same"
    assert judge_values(net, [88.722], lambda y: y * np.float32(1 - 3e-3), seed).status == "different"


@pytest.mark.parametrize("scale", [2.0**40, 2.0**-40])
def test_large_numbers_are_no_places_though_they_are_whole(scale: float) -> None:
    need("onnxruntime")
    net = net_of('type: "MVN" mvn_param { eps: 0 }', 1, 1, 8, 8)
    x = random_inputs(net)["x"]
    bounds = [judge_values(net, x * s, lambda y: y + 1).metrics for s in (1.0, scale)]
    assert bounds[0] is not None
    assert bounds[1] is not None
    assert bounds[0].bound == pytest.approx(bounds[1].bound)


def test_pixels_are_moved_and_places_are_not() -> None:
    need("onnxruntime")
    pixels = net_of('type: "Power" power_param { power: 0.5 }', 1, 256)
    close = judge_values(pixels, np.arange(256)[None], lambda y: y + 4e-5)
    assert close.status == "same", str(close)

    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 2 } } }
    layer { name: "p" type: "Input" top: "p" input_param { shape { dim: 3 } } }
    layer { name: "l" type: "BatchReindex" bottom: "x" bottom: "p" top: "y" }
    """
    net = make(text)
    inputs = {"x": np.float32([[0.1, 0.2], [10, 20], [1000, 2000]]), "p": np.float32([2, 1, 0])}
    a = engine_side("onnxruntime", net, inputs, {})
    b = Side("changed", {**a.values, (2, 0): a.values[2, 0] + 1})
    assert judge(net, a, b).status == "different"


# ---- the smallest fault that must be found -------------------------------------------------------
# Each bound is worked out here anew, from the module's docstring; a fault half as large again must not pass.


@pytest.mark.parametrize("terms", [9, 100, 2500])
def test_the_smallest_fault_of_a_sum(terms: int) -> None:
    """12 sqrt(k) roundings of the sum of the terms' magnitudes, for k terms with the bias."""
    need("onnxruntime")
    net = net_of('type: "InnerProduct" inner_product_param { num_output: 3 }', 1, terms)
    x = random_inputs(net)["x"]
    weight, bias = (net["l"].blobs[role].astype(np.float64) for role in ("weight", "bias"))
    magnitudes = np.abs(weight) @ np.abs(x[0].astype(np.float64)) + np.abs(bias)
    bound = 12 * np.sqrt(terms + 1) * 2.0**-24 * magnitudes
    assert judge_values(net, x, lambda y: y + 0.9 * bound).status == "same"
    assert judge_values(net, x, lambda y: y + 1.5 * bound).status == "different"
    assert judge_values(net, x, lambda y: y - 1.5 * bound).status == "different"


def test_the_smallest_fault_of_a_layer_that_is_no_sum() -> None:
    """The inputs are moved by 64 roundings of themselves, and the layer has 16 roundings of its own."""
    need("onnxruntime")
    net = net_of('type: "AbsVal"', 1, 50)
    x = np.full((1, 50), 1.25, np.float32)
    assert judge_values(net, x, lambda y: y + 1.25 * 72 * 2.0**-24).status == "same"
    assert judge_values(net, x, lambda y: y + 1.25 * 96 * 2.0**-24).status == "different"


def test_the_smallest_fault_of_results_that_are_not_moved() -> None:
    """Places and flags are apart by whole numbers, or by 16 roundings of the largest."""
    need("onnxruntime")
    net = net_of('type: "ArgMax" argmax_param { axis: 1 out_max_val: true }', 1, 50)
    x = np.linspace(0, 1, 50, dtype=np.float32)[None]
    assert judge_values(net, x, lambda y: y + 14 * 2.0**-24).status == "same"
    assert judge_values(net, x, lambda y: y + 24 * 2.0**-24).status == "different"


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_fault_of_several_layers(seed: int) -> None:
    """Each of two layers is moved by 80 / 12 roundings, up or down: 13 at most, of which three times as much passes."""
    need("onnxruntime")
    net = make(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1000 } } }'
        'layer { name: "a" type: "AbsVal" bottom: "x" top: "a" }'
        'layer { name: "b" type: "AbsVal" bottom: "a" top: "b" }'
    )
    a = engine_side("onnxruntime", net, {"x": np.full((1, 1000), 1.25, np.float32)}, {})
    for roundings, status in ((32, "same"), (60, "different")):
        moved = a.values[2, 0] + np.float32(1.25 * roundings * 2.0**-24)
        b = Side("changed", {(-1, 0): a.values[-1, 0], (2, 0): moved})  # it does not show what is in between
        assert judge(net, a, b, seed=seed).status == status


def test_a_difference_as_large_as_the_bound_passes() -> None:
    a, b = np.float32([1, 2, 0]), np.float32([1.5, 2, -0.0])
    assert metrics(a, b, 0.5).mismatches == 0
    assert metrics(a, b, np.nextafter(0.5, 0)).mismatches == 1
    assert metrics(a[1:], b[1:], 0).mismatches == 0


def test_lrn_keeps_a_running_sum() -> None:
    """Where a channel is a hundred times its neighbour, the sum behind it has the error of the larger one."""
    need("onnxruntime", "chainer")
    net = net_of('type: "LRN" lrn_param { local_size: 5 alpha: 0.0005 }', 1, 96, 9, 9)
    x = random_inputs(net)["x"] * np.where(np.arange(96) % 7 < 3, 3000, 30).reshape(1, 96, 1, 1).astype(np.float32)
    sides = [engine_side(name, net, {"x": x}, {}) for name in ("onnxruntime", "chainer")]
    assert judge(net, *sides).status == "same"
    assert judge_values(net, x, lambda y: y * np.float32(1 + 1e-2)).status == "different"
    even = random_inputs(net)["x"]
    assert judge_values(net, even, lambda y: y * np.float32(1 + 2e-4)).status == "different"
    assert judge_values(net, even, lambda y: y * np.float32(1 + 2e-7)).status == "same"


@pytest.mark.parametrize("level", [0.0, 10.0, 1000.0])
def test_mvn_of_a_channel_that_is_nearly_constant(level: float) -> None:
    need("onnxruntime", "chainer")
    net = net_of('type: "MVN"', 1, 2, 21, 15)
    for seed in range(3):
        x = np.float32(level) + np.float32(1e-4) * random_inputs(net, seed)["x"]
        sides = [engine_side(name, net, {"x": x}, {}) for name in ("onnxruntime", "chainer")]
        assert judge(net, *sides, seed=seed).status == "same"
    x = random_inputs(net)["x"] + np.float32(level / 1000)
    assert judge_values(net, x, lambda y: y * np.float32(1 + 3e-4)).status == "different"


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])
def test_an_unfolding_copies_what_is_not_finite(engine: str, pad: int) -> None:
    need(engine)
    net = net_of(f'type: "Im2col" convolution_param {{ kernel_size: 2 stride: 2 pad: {pad} }}', 1, 2, 4, 4)
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4), np.float32)
    x[0, 0, 1, 2], x[0, 1, 3, 3], x[0, 1, 0, 0] = np.inf, -np.inf, np.nan
    found = engine_side(engine, net, {"x": x}, {}).values[Place(1, 0)]
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])[0]
    expected = [plane[k // 2 :: 2, k % 2 :: 2] for plane in padded for k in range(4)]
    np.testing.assert_array_equal(found[0], expected)


def test_tiny_values_have_a_bound_of_their_own_scale() -> None:
    y = np.float32([2e-8, -1e-8])
    assert metrics(y, y * -3, fallback(y).bound(y).values).mismatches == 2
    assert metrics(y, y * np.float32(1 + 1e-5), fallback(y).bound(y).values).mismatches == 0


def test_without_an_engine_for_single_layers_a_difference_is_held_to_what_an_export_promises() -> None:
    """1e-4 of the value and 1e-5 of the blob's largest, 100 here; half as much again is found."""
    net = net_of('type: "AbsVal"', 1, 3)
    values = {(-1, 0): np.ones((1, 3), np.float32), (1, 0): np.float32([[1, 100, 0]])}
    for share, status in ((0.9, "same"), (1.5, "different")):
        for at, bound in ((0, 1e-4 + 1e-3), (1, 1e-2 + 1e-3), (2, 1e-3)):
            moved = values[1, 0].copy()
            moved[0, at] += share * bound
            sides = Side("a", values), Side("b", {**values, (1, 0): moved})
            compared = Comparison(net, None, *sides, given=Tolerances(), isolate=False, seed=0)
            assert compared.run().tops[-1].status == status, (share, at)


@pytest.mark.parametrize(
    ("a", "b", "psnr"),
    [([2.0, 0.0], [2.0, 1.0], 20 * np.log10(2 / np.sqrt(0.5))), ([0.0], [1.0], -np.inf), ([1.0], [np.inf], -np.inf)],
)
def test_the_signal_to_noise_ratio(a: list[float], b: list[float], psnr: float) -> None:
    assert metrics(np.float32(a), np.float32(b), 0.1).psnr == pytest.approx(psnr)


@pytest.mark.parametrize("view", ["Flatten", "Split", "Permute", "Reshape"])
def test_a_layer_that_wrote_over_an_input_is_named(view: str) -> None:
    need("onnxruntime")
    parameters = "reshape_param { shape { dim: 0 dim: -1 } }" if view == "Reshape" else ""
    net = make(
        f"""
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 2 dim: 2 dim: 2 }} }} }}
layer {{ name: "twice" type: "Power" bottom: "data" top: "c" power_param {{ scale: 2 }} }}
layer {{ name: "view" type: "{view}" bottom: "c" top: "v" {parameters} }}
layer {{ name: "relu" type: "ReLU" bottom: "v" top: "v" }}
layer {{ name: "late" type: "Power" bottom: "c" top: "late" power_param {{ scale: 3 }} }}
"""
    )
    a = engine_side("onnxruntime", net, {"data": np.full((1, 2, 2, 2), -1, np.float32)}, {})
    b = Side("Caffe", {**a.values, Place(4, 0): np.zeros((1, 2, 2, 2), np.float32)})
    runner = Runner(net, "onnxruntime", {})
    tops = Comparison(net, runner, a, b, given=Tolerances(), isolate=False, seed=0).run().tops
    assert "in Caffe layer 'relu' (ReLU) wrote over it" in tops[-1].inputs[0]
