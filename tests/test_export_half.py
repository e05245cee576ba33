"""Exports that compute in float16."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bridge
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Blob, Blobs
from tests.conftest import FASHION, need
from tests.nets import make
from tests.test_export_graph import CASES, CONV, DATA, export, run
from tests.test_golden import load

# ---- float16 -------------------------------------------------------------------------------------

HALF_RTOL, HALF_ATOL = 4e-3, 2e-3
"""The second relative to the largest value; float16 rounds to 4.9e-4 of a number."""


@pytest.mark.parametrize("opset", [13, 17])
@CASES
def test_float16_is_as_near_as_float16_can_be(case: Path, opset: int, tmp_path: Path) -> None:
    need("onnxruntime")
    net, inputs, recorded = load(case)
    model = export(net, tmp_path / "m.onnx", half=True, opset=opset)
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    onnx.checker.check_model(model, full_check=True)
    outputs = run(tmp_path / "m.onnx", inputs)
    for name, expected in recorded.items():
        beyond = np.abs(outputs[name]) > 65504  # what stays in float32 keeps its range
        wanted = np.where(beyond, expected, np.clip(expected, -65504, 65504))
        largest = max(1, np.abs(wanted[np.isfinite(wanted)]).max(initial=0))
        np.testing.assert_allclose(outputs[name], wanted, HALF_RTOL, HALF_ATOL * largest, err_msg=name)


@pytest.mark.parametrize("window", ["pool: MAX kernel_size: 2 stride: 5", "pool: STOCHASTIC kernel_size: 3 stride: 2"])
def test_poolings_that_leave_float16s_range_stay_in_float32(window: str, tmp_path: Path) -> None:
    """An empty window gives -FLT_MAX, and 400 squared is beyond 65504."""
    need("onnxruntime")
    pool = f'layer {{ name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param {{ {window} }} }}'
    net = make('input: "data" input_shape { dim: 1 dim: 2 dim: 9 dim: 8 }\n' + pool)
    x = {"data": np.random.default_rng(0).uniform(300, 500, (1, 2, 9, 8)).astype(np.float32)}
    assert net["p"].needs_float32  # ONNX Runtime's CPU kernels of float16 compute in float32 anyway
    found = []
    for half in (False, True):
        export(net, tmp_path / "m.onnx", half=half)
        found.append(run(tmp_path / "m.onnx", x)["p"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


def test_float16_halves_the_weights(tmp_path: Path) -> None:
    net = load(FASHION)[0]
    whole, half = (export(net, tmp_path / "m.onnx", half=half) for half in (False, True))
    sizes = [sum(tensor.ByteSize() for tensor in model.graph.initializer) for model in (whole, half)]
    assert sizes[1] < 0.52 * sizes[0]
    assert {tensor.name for tensor in half.graph.initializer} == {tensor.name for tensor in whole.graph.initializer}


def test_places_and_indices_stay_exact_in_float16(tmp_path: Path) -> None:
    """Of the integers beyond 2,048 float16 has every other one at most."""
    need("onnxruntime")
    net = make(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 99 dim: 97 } } }\n'
        'layer { name: "p" type: "Pooling" bottom: "data" top: "p" top: "mask" '
        "pooling_param { kernel_size: 5 stride: 5 } }\n"
        'layer { name: "f" type: "Flatten" bottom: "data" top: "f" }\n'
        'layer { name: "a" type: "ArgMax" bottom: "f" top: "a" argmax_param { axis: 1 } }\n'
        'layer { name: "s" type: "Silence" bottom: "p" }\n'
    )
    x = np.random.default_rng(0).uniform(0, 1, (1, 1, 99, 97)).astype(np.float16).astype(np.float32)
    x[0, 0, 80, 80] = 2
    found = {}
    for half in (False, True):
        export(net, tmp_path / "m.onnx", half=half)
        found[half] = run(tmp_path / "m.onnx", {"data": x})
    assert found[True]["a"].item() == 80 * 97 + 80
    assert (found[False]["mask"] > 2048).any()
    np.testing.assert_array_equal(found[True]["mask"], found[False]["mask"])


def test_weights_beyond_float16_are_limited_and_named(tmp_path: Path) -> None:
    net = make(DATA + CONV)
    large = net["c"].weight.copy()
    large[0, 0, 0, 0], large[1, 0, 0, 0] = 1e6, -7e4
    changed = net.replace(layers=tuple(with_weight(layer, large) for layer in net.layers))
    graph = bridge.export_onnx(changed, tmp_path / "m.onnx", half=True, check=False)
    assert graph.notes == ["'c.weight' has values beyond float16's range: they are limited to 65504"]
    (weight,) = (
        tensor for tensor in onnx.load(str(tmp_path / "m.onnx")).graph.initializer if tensor.name == "c.weight"
    )
    values = numpy_helper.to_array(weight)
    assert (values[0, 0, 0, 0], values[1, 0, 0, 0]) == (65504, -65504)


@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_no_numbers_are_named(half: bool, tmp_path: Path) -> None:
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[0, 0, 0, :2] = np.nan, -np.inf
    bias = Blob.of(np.array([1, 2, 1e300, 4]))  # float64, infinite as the float32 that is written
    net = make(DATA + CONV)
    broken = dataclasses.replace(net["c"], blobs=Blobs({"weight": Blob.of(weight), "bias": bias}))
    graph = bridge.export_onnx(net.replace(layers=(net.layers[0], broken)), tmp_path / "m.onnx", half=half)
    kept = ["'c.bias' has values beyond float16's range: they are limited to 65504"]
    wrong = [f"'c.{role}' has values that are not finite numbers" for role in ("weight", "bias")]
    told = [note for note in graph.notes if note.startswith("'")]
    assert told == (kept + wrong[:1] if half else wrong)
    assert not any("finite" in note for note in bridge.export_onnx(net, tmp_path / "m.onnx", half=half).notes)


def test_constants_that_are_infinite_are_meant_so(tmp_path: Path) -> None:
    net = make(DATA + 'layer { name: "p" type: "Power" bottom: "data" top: "p" power_param { shift: inf } }\n')
    assert not any("finite" in note for note in bridge.export_onnx(net, tmp_path / "m.onnx").notes)


def with_weight(layer: Any, weight: np.ndarray) -> Any:
    if "weight" not in layer.blobs:
        return layer
    return dataclasses.replace(layer, blobs=Blobs({**dict(layer.blobs.entries()), "weight": Blob.of(weight)}))


def test_preprocessing_is_not_rounded_to_float16(tmp_path: Path) -> None:
    """A mean of 104.00699 is 104 in float16."""
    need("onnxruntime")
    net = make(DATA + 'layer { name: "r" type: "Power" bottom: "data" top: "r" power_param { scale: 100 } }\n')
    export(net, tmp_path / "m.onnx", half=True, preprocess=Preprocess(np.float32([104.00699, 116.66877, 122.67892])))
    x = np.full((2, 3, 6, 7), 104.5, np.float32)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", {"data": x})["r"][:, 0], 49.301, rtol=2e-3)


def test_a_custom_node_is_fed_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.layers.pooling import Pooling

    monkeypatch.setattr(Pooling, "to_onnx", lambda self, g, *x: g.custom(self, *x, reason="a test"))
    pool = 'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 } }\n'
    net = make(DATA + CONV + pool + CONV.replace('"data"', '"p"').replace('"c"', '"d"'))
    model = export(net, tmp_path / "m.onnx", half=True, allow_custom=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    (node,) = (node for node in model.graph.node if node.domain)
    assert [types[name] for name in (*node.input, *node.output)] == [1, 1]
    assert [
        types[node.output[0]] for node in model.graph.node if node.op_type == "Conv" and node.output[0] in types
    ] == [10, 10]
