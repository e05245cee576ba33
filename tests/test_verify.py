"""``bridge verify``: what is the same passes, and what is not is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import prototxt
from bridge.assemble import assemble
from bridge.layers import build_layer
from bridge.schema import Blob, Net, RawLayer, RawNet
from bridge.verify.report import Report
from tests.conftest import FASHION, GOLDEN, need, zoo
from tests.test_golden import ZOO_MODELS

DEPLOY, WEIGHTS = FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel"

NET = """
name: "planted"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 17 dim: 17 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 k: 2 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 8 kernel_size: 3 pad: 2 dilation: 2 group: 2 } }
layer { name: "bn2" type: "BatchNorm" bottom: "conv2" top: "conv2" batch_norm_param { eps: 0.00001 } }
layer { name: "scale2" type: "Scale" bottom: "conv2" top: "conv2" scale_param { bias_term: true } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" relu_param { negative_slope: 0.1 } }
layer { name: "branch" type: "Convolution" bottom: "pool1" top: "branch"
        convolution_param { num_output: 8 kernel_size: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "conv2" bottom: "branch" top: "sum" eltwise_param { coeff: 1 coeff: -0.5 } }
layer { name: "pool2" type: "Pooling" bottom: "sum" top: "pool2"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "fc3" type: "InnerProduct" bottom: "pool2" top: "fc3" inner_product_param { num_output: 12 } }
layer { name: "fc4" type: "InnerProduct" bottom: "fc3" top: "fc4" inner_product_param { num_output: 12 } }
layer { name: "prob" type: "Softmax" bottom: "fc4" top: "prob" }
"""


def filled(text: str, seed: int = 0) -> Net:
    """The net of a prototxt, with random blobs."""
    definition = prototxt.parse(text)
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    raws = []
    for message in definition.messages("layer"):
        layer: Any = build_layer(message)
        if layer.type == "Input":
            shapes.update(zip(layer.tops, layer.input_shapes, strict=True))
            continue
        bottoms = [shapes[bottom] for bottom in layer.bottoms]
        blobs = {
            role: rng.uniform(0.5, 2, shape) if role in ("variance", "scale_factor") else rng.standard_normal(shape)
            for role, shape in layer.blob_shapes(*bottoms).items()
        }
        stored = tuple(Blob.of(np.asarray(blob, np.float32)) for blob in blobs.values())
        raws.append(RawLayer(layer.name, layer.type, message, stored))
        shapes.update(zip(layer.tops, layer.infer(*bottoms), strict=True))
    return assemble(RawNet("planted", tuple(raws), reader="test", source="test"), definition)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with deploy.prototxt, weights.caffemodel and net.onnx of the net above."""
    need("onnxruntime")
    folder = tmp_path_factory.mktemp("planted")
    (folder / "deploy.prototxt").write_text(NET)
    net = filled(NET)
    bridge.save(net, folder / "weights.caffemodel")
    bridge.export_onnx(net, folder / "net.onnx")
    return folder


def against(model: Path, onnx_file: Path) -> Report:
    return bridge.verify(
        model / "deploy.prototxt", model / "weights.caffemodel", against=onnx_file, engines=["onnxruntime"], readers=()
    )


# -- nothing is found where nothing is wrong ---------------------------------------------------


@pytest.mark.parametrize("case", [*GOLDEN, FASHION], ids=lambda path: path.name)
def test_raises_no_false_alarm_on_what_caffe_recorded(case: Path) -> None:
    need("onnxruntime")
    report = bridge.verify(case / "deploy.prototxt", next(case.glob("*.caffemodel")), recorded=case / "io.npz")
    assert_agrees_with_all_recorded(report, case)


def assert_agrees_with_all_recorded(report: Report, case: Path) -> None:
    assert report.passed, str(report)
    (recorded,) = [outputs for outputs in report.outputs if outputs.b == str(case / "io.npz")]
    with np.load(case / "io.npz") as arrays:
        assert recorded.count("same") >= sum(key.startswith("out:") for key in arrays)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO_MODELS)
def test_raises_no_false_alarm_on_a_third_partys_model(name: str) -> None:
    need("onnxruntime")
    case = zoo(name)
    report = bridge.verify(case / "deploy.prototxt", next(case.glob("*.caffemodel")), recorded=case / "io.npz")
    assert_agrees_with_all_recorded(report, case)


def test_raises_no_false_alarm_on_an_export(model: Path) -> None:
    report = against(model, model / "net.onnx")
    assert report.passed, str(report)
    assert report.outputs[-1].count("same") == 12
    assert [top.layer for top in report.outputs[-1].tops if top.status == "not compared"] == ["bn2"]


def test_a_model_against_itself_shows_no_difference() -> None:
    report = bridge.verify(DEPLOY, WEIGHTS, against=[DEPLOY, WEIGHTS], engines=())
    assert report.passed
    assert report.differences == []
    assert report.weights[-1].count("same") == 10


# -- planted faults ----------------------------------------------------------------------------


def node(model: Any, layer: str, op: str) -> Any:
    return next(node for node in model.graph.node if node.name.startswith(f"{layer}/") and node.op_type == op)


def attribute(model: Any, layer: str, op: str, name: str, value: Any) -> None:
    import onnx

    found = node(model, layer, op)
    kept = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def weight(model: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    import onnx

    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = np.array(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(change(values)), name))


def swapped(values: np.ndarray) -> np.ndarray:
    values[[1, 2]] = values[[2, 1]]
    return values


FAULTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "two output channels swapped": ("conv1", lambda m: weight(m, "conv1.weight", swapped)),
    "a square weight transposed": ("fc4", lambda m: weight(m, "fc4.weight", np.transpose)),
    "a bias lost": ("conv1", lambda m: node(m, "conv1", "Conv").input.pop()),
    "a bias of an inner product lost": ("fc3", lambda m: node(m, "fc3", "Gemm").input.pop()),
    "dilation ignored": ("conv2", lambda m: attribute(m, "conv2", "Conv", "dilations", [1, 1])),
    "dilation ignored, shape kept": (
        "conv2",
        lambda m: (
            attribute(m, "conv2", "Conv", "dilations", [1, 1]),
            attribute(m, "conv2", "Conv", "pads", [1, 1, 1, 1]),
        ),
    ),
    "k of LRN ignored": ("norm1", lambda m: attribute(m, "norm1", "LRN", "bias", 1.0)),
    "alpha of LRN not divided": ("norm1", lambda m: attribute(m, "norm1", "LRN", "alpha", 0.3)),
    "rounding down instead of up": ("pool1", lambda m: attribute(m, "pool1", "MaxPool", "pads", [0, 0, 0, 0])),
    "another eps of BatchNorm": (
        "bn2",
        lambda m: attribute(m, "bn2", "BatchNormalization", "epsilon", 1e-3),
    ),
    "groups in another order": ("conv2", lambda m: weight(m, "conv2.weight", lambda w: np.roll(w, 4, axis=0))),
    "one group too many": (
        "conv2",
        lambda m: (
            attribute(m, "conv2", "Conv", "group", 4),
            weight(m, "conv2.weight", lambda w: w[:, :2]),
        ),
    ),
    "the padding not counted": ("pool2", lambda m: attribute(m, "pool2", "AveragePool", "count_include_pad", 0)),
    "a slope lost": ("relu2", lambda m: attribute(m, "relu2", "LeakyRelu", "alpha", 0.01)),
    "the softmax over another axis": ("prob", lambda m: attribute(m, "prob", "Softmax", "axis", 0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_finds_a_planted_fault_and_names_its_layer(model: Path, tmp_path: Path, fault: str) -> None:
    onnx = pytest.importorskip("onnx")
    layer, plant = FAULTS[fault]
    changed = onnx.load(model / "net.onnx")
    plant(changed)
    onnx.save(changed, tmp_path / "planted.onnx")
    report = against(model, tmp_path / "planted.onnx")
    assert report.status == 1, str(report)
    found = report.first_difference
    assert found is not None
    # The exporter merges a Scale into the BatchNorm before it: the verdict is on both.
    assert layer in (found.layer, *found.since), str(report)
    assert found.layer == layer or found.since == ("bn2",), str(report)
    others = {blob.layer for weights in report.weights for blob in weights.blobs if blob.status == "different"}
    assert others <= {layer}


def test_finds_every_single_bit_changed_of_any_weight(tmp_path: Path) -> None:
    data = bytearray(WEIGHTS.read_bytes())
    blobs = [(layer.name, role, blob) for layer in bridge.load(DEPLOY, WEIGHTS) for role, blob in layer.blobs.entries()]
    shares = np.array([blob.size for *_, blob in blobs]) / sum(blob.size for *_, blob in blobs)
    rng = np.random.default_rng(7)
    file = tmp_path / "changed.caffemodel"
    for _ in range(2000):
        layer, role, blob = blobs[rng.choice(len(blobs), p=shares)]
        value, bit = int(rng.integers(blob.size)), int(rng.integers(32))
        byte = blob.location.offset + 4 * value + bit // 8
        data[byte] ^= 1 << bit % 8
        file.write_bytes(data)
        data[byte] ^= 1 << bit % 8
        report = bridge.verify(DEPLOY, WEIGHTS, against=file, engines=(), readers=(), checks=())
        (found,) = report.differences
        assert (found.layer, found.role) == (layer, role)
        assert found.index == tuple(int(i) for i in np.unravel_index(value, blob.shape))
        assert found.differing == 1
