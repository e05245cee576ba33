"""The contract of ``bridge.testing`` is tested itself: a layer that declares something wrong fails the test for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bridge.layers import CaffeLayer, layer_type
from bridge.layers.base import REGISTRY
from bridge.layers.convolution import Convolution
from bridge.schema import Layer, Shape
from bridge.testing import LayerCase, LayerContract
from bridge.verification import tolerance
from tests.conftest import need

pytestmark = pytest.mark.usefixtures("first_failure")


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    known = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(known)


class Own(CaffeLayer):
    """A layer of the test, whose top has the shape of its bottom."""

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (bottoms[0],)


def hold(declared: dict[str, Any], test: str, case: LayerCase, base: type[CaffeLayer] = Own) -> None:
    """Run a test of the contract on a layer type with these members."""
    REGISTRY.pop("Own", None)
    layer_type("Own")(type("OwnLayer", (base,), {"__doc__": "Source: this test.", **declared}))
    contract = type("TestOwn", (LayerContract,), {"case": case, "examples": 10})
    with np.errstate(all="ignore"):
        getattr(contract(), test)()


def softmax(self: Layer, g: Any, *x: str) -> str:
    return str(g.Softmax(x[0], axis=1))


def mean_free(self: Layer, g: Any, *x: str) -> str:
    return str(g.Sub(x[0], g.reduce("Mean", x[0], (1, 2, 3))))


def near_one(self: Layer, g: Any, *x: str) -> str:
    return str(g.Sub(g.Exp(x[0]), g.const(np.float32(1))))


def around_a_thousand(self: Layer, g: Any, *x: str) -> str:
    large = g.const(np.float32(1000))
    return str(g.Sub(g.Add(x[0], large), large))


def largest_place(self: Layer, g: Any, *x: str) -> str:
    places = g.Cast(g.ArgMax(x[0], axis=1, keepdims=1), to=1)
    return str(g.Add(g.Mul(x[0], g.const(np.float32(0))), g.Add(places, g.const(np.float32(0.5)))))


def halves(self: Layer, g: Any, *x: str) -> str:
    sizes = g.ints([*g.shape(x[0])])
    one = g.Slice(x[0], g.ints([0]), g.ints([-1]), g.ints([3]))
    return str(g.Resize(one, "", "", sizes, mode="linear", coordinate_transformation_mode="align_corners"))


def bound(value: float) -> Any:
    return lambda self, unit, *bottoms: unit * np.abs(bottoms[0]) * value


IMAGES, ROWS = LayerCase("Own", "", ((2, 3, 5, 6),)), LayerCase("Own", "", ((2, 6),))
WRONG = {
    "adds_many": (
        {"to_onnx": softmax, "adds_many": False}, "test_its_sums_run_over_the_axes_that_it_declares", ROWS,
        "adds_many, or has summed_axes",
    ),
    "summed_axes": (
        {"to_onnx": mean_free, "summed_axes": lambda self, rank: (2, 3)},
        "test_its_sums_run_over_the_axes_that_it_declares", IMAGES, "adds up over axis 1, which is not among",
    ),
    "rounds_near_one": (
        {"to_onnx": near_one, "rounds_near_one": False, "adds_many": False},
        "test_its_rounding_stays_within_its_bound", IMAGES, "see rounding_bound, rounds_near_one",
    ),
    "rounding_bound": (
        {"to_onnx": around_a_thousand, "rounding_bound": bound(1)},
        "test_its_rounding_stays_within_its_bound", IMAGES, "see rounding_bound, rounds_near_one",
    ),
    "rounding_bound below 0": (
        {"to_onnx": softmax, "rounding_bound": bound(-1)},
        "test_its_rounding_stays_within_its_bound", ROWS, "rounding_bound is negative",
    ),
    "chooses, but does not say so": (
        {"to_onnx": largest_place, "adds_many": False}, "test_it_chooses_as_it_declares", ROWS, "see chooses",
    ),
    "chooses, but it does not": (
        {"to_onnx": softmax, "chooses": True}, "test_it_chooses_as_it_declares", ROWS, "chooses: no change of one",
    ),
    "position_extent": (
        {"to_onnx": halves, "adds_many": False}, "test_its_places_are_as_far_as_it_declares", IMAGES,
        "position_extent is 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("declared", "test", "case", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_claim_about_numbers_is_found(
    declared: dict[str, Any], test: str, case: LayerCase, message: str
) -> None:
    need("onnxruntime")
    with pytest.raises(AssertionError, match=message):
        hold(declared, test, case)


RIGHT = {
    "adds_many": ({"adds_many": True}, "adds_many"),
    "summed_axes": ({"summed_axes": lambda self, rank: (1, 2, 3)}, "summed_axes"),
    "rounds_near_one": ({"rounds_near_one": True}, "rounds_near_one"),
    "rounding_bound": ({"rounding_bound": lambda self, unit, x: unit * (np.abs(x) + 1000)}, "rounding_bound"),
    "chooses": ({"chooses": True}, "chooses, but does not say so"),
    "position_extent": ({"position_extent": lambda self, *shapes: 6}, "position_extent"),
}


@pytest.mark.parametrize(("declared", "wrong"), RIGHT.values(), ids=RIGHT)
def test_the_same_layer_passes_with_the_right_claim(declared: dict[str, Any], wrong: str) -> None:
    need("onnxruntime")
    members, test, case, _ = WRONG[wrong]
    hold({**members, **declared}, test, case)


# -- what blobs mean --------------------------------------------------------------------------------


def by_pixels(self: Any, g: Any, *x: str) -> str:
    """An inner product whose weight has all channels of a pixel side by side."""
    turned = g.Reshape(g.Transpose(x[0], perm=(0, 2, 3, 1)), g.ints([2, -1]))
    return str(g.MatMul(turned, g.Transpose(g.blob(self, "weight"), perm=(1, 0))))


def by_channels(self: Any, g: Any, *x: str) -> str:
    return str(g.MatMul(g.Reshape(x[0], g.ints([2, -1])), g.Transpose(g.blob(self, "weight"), perm=(1, 0))))


FLAT = {
    "flat_weight": True,
    "roles": lambda self, stored: ("weight",),
    "blob_shapes": lambda self, *bottoms: {"weight": (4, int(np.prod(bottoms[0][1:])))},
    "infer": lambda self, *bottoms: ((2, 4),),
}
NORMALISES = {
    "normalises": True,
    "roles": lambda self, stored: ("mean", "variance"),
    "blob_shapes": lambda self, *bottoms: dict.fromkeys(("mean", "variance"), (3,)),
    "summed_axes": lambda self, rank: (),
}
POSITIVE = {"variance": lambda rng, shape: rng.random(shape) + 1}


def normalised(root: bool) -> Any:
    def to_onnx(self: Any, g: Any, *x: str) -> str:
        mean, variance = (g.blob(self, role, (3, 1, 1)) for role in ("mean", "variance"))
        return str(g.Div(g.Sub(x[0], mean), g.Sqrt(variance) if root else variance))

    return to_onnx


@pytest.mark.parametrize(
    ("members", "right", "wrong", "blobs", "message"),
    [
        (FLAT, by_channels, by_pixels, {}, "flat_weight: the flat weight does not have the places of axis 1"),
        (NORMALISES, normalised(True), normalised(False), POSITIVE, "normalises: one stored deviation"),
    ],
    ids=["flat_weight", "normalises"],
)
def test_a_wrong_claim_about_blobs_is_found(
    members: dict[str, Any], right: Any, wrong: Any, blobs: Any, message: str
) -> None:
    need("onnxruntime")
    case = LayerCase("Own", "", ((2, 3, 2, 2),), blobs=blobs)
    hold({**members, "to_onnx": right}, "test_its_blobs_mean_what_it_declares", case)
    with pytest.raises(AssertionError, match=message):
        hold({**members, "to_onnx": wrong}, "test_its_blobs_mean_what_it_declares", case)


def test_a_fault_in_a_weight_that_the_bound_covers_is_no_fault_and_one_beyond_it_must_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("onnxruntime")
    test = "test_a_small_fault_in_its_weights_is_found"
    body = "convolution_param { num_output: 4 kernel_size: 3 }"
    case = LayerCase("Own", body, ((1, 3, 5, 5),))
    hold({}, test, case, Convolution)
    monkeypatch.setattr(tolerance, "FACTOR", tolerance.FACTOR * 100_000)  # so wide a bound hides every fault
    with pytest.raises(AssertionError, match="half of the faults that are found are larger"):
        hold({}, test, case, Convolution)


# -- classes ------------------------------------------------------------------------------------------

LABELS = {1: lambda rng, shape: rng.integers(0, 4, shape)}
CLASSIFIERS = {
    "SoftmaxWithLoss": LayerCase("SoftmaxWithLoss", "", ((3, 4, 2), (3, 2)), data=LABELS),
    "HingeLoss": LayerCase("HingeLoss", "", ((3, 4), (3,)), data=LABELS),
    "MultinomialLogisticLoss": LayerCase(
        "MultinomialLogisticLoss", "", ((3, 4), (3,)), data={**LABELS, 0: lambda rng, shape: rng.random(shape) + 0.1}
    ),
    "InfogainLoss": LayerCase(
        "InfogainLoss", "", ((3, 4), (3,), (4, 4)), data={**LABELS, 2: lambda rng, shape: np.eye(shape[0])}
    ),
}


def contract_of(case: LayerCase) -> LayerContract:
    made: LayerContract = type("TestLoss", (LayerContract,), {"case": case, "examples": 10})()
    return made


def test_every_type_that_classifies_is_tested() -> None:
    assert set(CLASSIFIERS) == {name for name, cls in REGISTRY.items() if cls.classifies}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_loss_classifies_as_it_declares(name: str) -> None:
    need("chainer")
    contract_of(CLASSIFIERS[name]).test_it_classifies_as_it_declares()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (LayerCase("EuclideanLoss", "", ((3, 4), (3, 4))), "one label for each place"),
        (LayerCase("EuclideanLoss", "", ((3, 1), (3, 1)), data=LABELS), "higher scores of the"),
    ],
)
def test_a_loss_that_does_not_classify_is_found(monkeypatch: pytest.MonkeyPatch, case: LayerCase, message: str) -> None:
    need("chainer")
    monkeypatch.setattr(REGISTRY["EuclideanLoss"], "classifies", True)
    with pytest.raises(AssertionError, match=message):
        contract_of(case).test_it_classifies_as_it_declares()
