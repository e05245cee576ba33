"""Draws of inputs that find faults: thresholds on both sides, and what hides a fault is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.verification.draws import OutputValues, Thresholds
from bridge.verification.inputs import make_inputs
from bridge.verification.segments import Place
from tests.conftest import ROOT, need
from tests.nets import make

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "six" type: "ReLU6" bottom: "data" top: "six" }
layer { name: "flat" type: "InnerProduct" bottom: "six" top: "flat" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "flat" top: "prob" }
"""


def test_thresholds_are_counted_from_both_sides() -> None:
    net = make(NET)
    thresholds = Thresholds(net)
    data = Place(-1, 0)
    assert thresholds.unmet() == []  # nothing is known of its input
    thresholds.count(1, {data: np.float32([1, 2])})
    assert thresholds.unmet() == [(1, 0.0), (1, 6.0)]
    thresholds.count(1, {data: np.float32([-1, 2])})
    assert thresholds.remarks() == ["values on one side only of the threshold of layer 'six' (ReLU6) at 6"]
    thresholds.count(1, {data: np.float32([7])})
    assert thresholds.unmet() == []


def test_a_saturated_softmax_is_said_to_hide_faults() -> None:
    net = make(NET)
    thresholds = Thresholds(net)
    thresholds.count(3, {Place(3, 0): np.float32([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])})
    assert "layer 'prob' (Softmax) is saturated" in thresholds.remarks()[0]
    thresholds.count(3, {Place(3, 0): np.float32([[1, 0, 0, 0, 0], [0.3, 0.7, 0, 0, 0]])})
    assert thresholds.remarks() == []


@pytest.mark.parametrize(("value", "words"), [(np.nan, "is NaN everywhere"), (0.5, "has one value everywhere")])
def test_outputs_that_prove_nothing_are_named(value: float, words: str) -> None:
    net = make(NET)
    place = net.flow.last["prob"]
    outputs = OutputValues(net)
    outputs.count(place.layer, {place: np.full((2, 5), value, np.float32)})
    assert words in outputs.remarks()[0]
    outputs.count(place.layer, {place: np.arange(10, dtype=np.float32)})
    assert not outputs.remarks()


def test_draws_meet_thresholds_and_ties(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    bridge.save(make(NET), tmp_path / "net.npz")
    report = bridge.verify(tmp_path / "net.npz", engines=["onnxruntime", "chainer"], readers=(), checks=())
    assert len(report.inputs) >= 3
    assert not any("threshold" in remark for remark in report.remarks)
    one = bridge.verify(tmp_path / "net.npz", engines=["onnxruntime", "chainer"], readers=(), checks=(), draws=1)
    assert len(one.inputs) == 1
    assert any("threshold of layer 'six' (ReLU6) at 6" in remark for remark in one.remarks)


def test_an_input_that_is_given_is_not_drawn(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    net = make(NET)
    bridge.save(net, tmp_path / "net.npz")
    report = bridge.verify(
        tmp_path / "net.npz", engines=["onnxruntime", "chainer"], readers=(), checks=(), inputs=make_inputs(net)
    )
    assert len(report.inputs) == 1


def test_finds_faults_that_one_draw_misses() -> None:
    need("onnxruntime", "onnx")
    faults = [
        "relu6: relu",
        "clip: lower limit lost",
        "threshold: equal counts",
        "softmax: a constant",
        "output: doubled",
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "plant.py"), *faults]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 found, 5 by running the graph, 5 named right" in done.stdout


def test_each_input_of_a_maximum_is_the_largest_somewhere(tmp_path: Path) -> None:
    need("onnxruntime", "onnx")
    import onnx

    net = make("""
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
    layer { name: "low" type: "Sigmoid" bottom: "data" top: "low" }
    layer { name: "high" type: "Power" bottom: "low" top: "high" power_param { shift: 2 } }
    layer { name: "max" type: "Eltwise" bottom: "low" bottom: "high" top: "max" eltwise_param { operation: MAX } }
    """)
    thresholds = Thresholds(net)
    thresholds.count(3, {Place(1, 0): np.float32([0.1, 0.2]), Place(2, 0): np.float32([2.1, 2.2])})
    assert thresholds.remarks() == ["input 'low' of layer 'max' (Eltwise) is nowhere the largest"]
    bridge.save(net, tmp_path / "net.npz")
    bridge.export_onnx(net, tmp_path / "net.onnx", check=False)
    options = {"engines": ["onnxruntime"], "readers": (), "checks": ()}
    assert bridge.verify(tmp_path / "net.npz", against=tmp_path / "net.onnx", **options).passed  # type: ignore[arg-type]
    model = onnx.load(str(tmp_path / "net.onnx"))
    next(node for node in model.graph.node if node.op_type == "Max").input[0] = "high"
    onnx.save(model, str(tmp_path / "net.onnx"))
    report = bridge.verify(tmp_path / "net.npz", against=tmp_path / "net.onnx", **options)  # type: ignore[arg-type]
    assert report.status == 1
