"""Losses and accuracies against the real Caffe's, value and gradient, as recorded; and what they make of a net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import BridgeError, ModelError, UnsupportedLayerError
from bridge.schema import Net, Opaque
from tests.conftest import FIXTURES, TRAINING, need

RECIPES = sorted(  # of those with iter_size, the recorded losses are means over several passes
    path.parent for path in TRAINING.glob("*/solver.prototxt") if "iter_size" not in path.read_text()
)


def recorded() -> dict[str, dict[str, Any]]:
    """Case -> ``net``, ``in:BLOB``, ``out:BLOB``, ``bottom:BLOB``."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(FIXTURES / "losses.npz") as file:
        for key in file:
            case, _, name = key.partition("/")
            found.setdefault(case, {})[name] = file[key]
    return found


CASES = recorded()


def parsed(text: str) -> Net:
    return assemble(None, prototxt.parse(text))


def run(case: dict[str, Any]) -> tuple[Net, dict[str, Any], dict[str, Any]]:
    """The net, its inputs as variables, and all blobs."""
    need("chainer")
    from bridge.chain import build_chain
    from bridge.chain.functions import chainer

    net = parsed(str(case["net"]))
    inputs = {name[3:]: chainer.Variable(array) for name, array in case.items() if name.startswith("in:")}
    return net, inputs, build_chain(net).run(inputs)


@pytest.mark.parametrize("name", sorted(CASES))
def test_value_is_what_caffe_recorded(name: str) -> None:
    net, _, values = run(CASES[name])
    shapes = dict(zip(net.layers[-1].tops, net.infer()[-1], strict=False))
    for key, expected in CASES[name].items():
        if key.startswith("out:"):
            assert values[key[4:]].shape == expected.shape == shapes[key[4:]]
            np.testing.assert_allclose(values[key[4:]].array, expected, 1e-5, 1e-6)


@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if "bottom:x" in case))
def test_gradient_is_what_caffe_recorded(name: str) -> None:
    net, inputs, values = run(CASES[name])
    (values["loss"] * net.layers[-1].loss_weights[0]).backward()  # type: ignore[attr-defined]
    for key, expected in CASES[name].items():
        if key.startswith("bottom:"):
            np.testing.assert_allclose(inputs[key[7:]].grad, expected, 1e-5, 1e-7)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_net_runs_to_the_loss_that_caffe_had(recipe: Path, phase: str) -> None:
    need("chainer")
    net = bridge.load(recipe / "train.prototxt", recipe / "start.caffemodel", phase=phase)
    with np.load(TRAINING / "batches.npz") as batches:
        x, y = batches["x"][0].astype(np.float32) / 256, batches["y"][0].astype(np.float32)
    with np.load(recipe / "loss.npz") as losses:
        first = float(losses["loss"][0])
    chain = bridge.build_chain(net)
    assert float(chain.loss({"data": x, "label": y}).array) == pytest.approx(first, abs=1e-5)
    assert float(chain(x, y).array) == pytest.approx(first, abs=1e-5)


TWO = (
    'input: "x" input_shape { dim: 2 dim: 3 } input: "t" input_shape { dim: 2 dim: 3 }\n'
    'layer { name: "a" type: "EuclideanLoss" bottom: "x" bottom: "t" top: "a" loss_weight: 0.5 }\n'
    'layer { name: "b" type: "Reduction" bottom: "x" top: "b" loss_weight: 2 }\n'
    'layer { name: "c" type: "EuclideanLoss" bottom: "x" bottom: "t" }\n'
)


def test_the_loss_of_a_net_is_the_weighted_sum_of_all() -> None:
    need("chainer")
    x, t = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    chain = bridge.build_chain(parsed(TWO))
    euclidean = ((x - t) ** 2).sum() / 4
    assert float(chain.loss({"x": x, "t": t}).array) == pytest.approx(1.5 * euclidean + 2 * x.sum())


def test_a_net_without_a_loss_cannot_be_trained() -> None:
    need("chainer")
    relu = 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    chain = bridge.build_chain(parsed('input: "x" input_shape { dim: 2 dim: 3 }\n' + relu))
    with pytest.raises(ModelError, match="the net has no loss"):
        chain.loss({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize(
    ("kind", "params", "t", "message"),
    [
        ("SoftmaxWithLoss", "", [0, 3], "label 3 is none of the 3 classes"),
        ("SoftmaxWithLoss", "loss_param { ignore_label: 3 }", [-1, 3], "label -1 is none of the 3 classes"),
        ("HingeLoss", "", [0, 3], "label 3 is none of the 3 classes"),
        ("MultinomialLogisticLoss", "", [5, 0], "label 5 is none of the 3 classes"),
        ("Accuracy", "", [0, 7], "label 7 is none of the 3 classes"),
    ],
)
def test_a_label_that_is_no_class_is_an_error(kind: str, params: str, t: list[int], message: str) -> None:
    need("chainer")
    text = 'input: "x" input_shape { dim: 2 dim: 3 } input: "t" input_shape { dim: 2 }\n'
    net = parsed(text + f'layer {{ name: "l" type: "{kind}" bottom: "x" bottom: "t" top: "l" {params} }}')
    with pytest.raises(BridgeError, match=message):
        bridge.build_chain(net)(np.full((2, 3), 0.5, np.float32), np.array(t, np.float32))


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        ("SoftmaxWithLoss", ["dim: 2 dim: 3", "dim: 3"], r"3 labels \(3\) for 2 x 3, expected 2"),
        ("SoftmaxWithLoss", ["dim: 2 dim: 3 dim: 4", "dim: 8"], "8 labels"),
        ("EuclideanLoss", ["dim: 2 dim: 3", "dim: 3 dim: 2"], "bottom 1 is 3 x 2, expected 2 x 3"),
        ("SigmoidCrossEntropyLoss", ["dim: 2 dim: 3", "dim: 2"], "bottom 1 is 2, expected 2 x 3"),
        ("Accuracy", ["dim: 2 dim: 3", "dim: 2 dim: 3"], "6 labels"),
    ],
)
def test_bottoms_that_do_not_go_together_are_an_error(kind: str, shapes: list[str], message: str) -> None:
    text = "".join(f'input: "{name}" input_shape {{ {shape} }}\n' for name, shape in zip("xt", shapes, strict=True))
    net = parsed(text + f'layer {{ name: "l" type: "{kind}" bottom: "x" bottom: "t" top: "l" }}')
    with pytest.raises(ModelError, match=message):
        net.infer()


def test_an_infogain_matrix_in_a_file_is_not_followed() -> None:
    need("chainer")
    text = 'input: "x" input_shape { dim: 2 dim: 3 } input: "t" input_shape { dim: 2 }\n'
    layer = 'layer { name: "l" type: "InfogainLoss" bottom: "x" bottom: "t" infogain_loss_param { source: "h" } }'
    with pytest.raises(UnsupportedLayerError, match="'h' is not read"):
        bridge.build_chain(parsed(text + layer))(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))


def test_loss_weights_are_one_per_top() -> None:
    text = TWO.replace("loss_weight: 0.5", "loss_weight: 0.5 loss_weight: 1")
    assert parsed(text).layers[1].reason() == "has 2 loss_weight, expected none, or 1"


def test_wrong_counts_of_bottoms_say_so() -> None:
    (layer,) = parsed('layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" top: "l" }').layers
    assert isinstance(layer, Opaque)
    assert "has 1 bottoms, expected 2" in layer.problem
