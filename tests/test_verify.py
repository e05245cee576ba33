"""``bridge verify``: what is the same passes, and what is not is found and named."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.caffe_files import prototxt
from bridge.errors import FormatError, MissingFileError, ModelError, UsageError
from bridge.layers import build_layer
from bridge.verification.report import Report
from tests.conftest import FASHION, GOLDEN, missing, need, zoo
from tests.nets import make
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with deploy.prototxt, weights.caffemodel and net.onnx of the net above."""
    need("onnxruntime")
    folder = tmp_path_factory.mktemp("planted")
    (folder / "deploy.prototxt").write_text(NET)
    net = make(NET)
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
    (recorded,) = [outputs for outputs in report.outputs if outputs.b == str(case / "io.npz")]
    assert report.status == (0 if recorded.tops else 2), str(report)  # a net of Silence writes nothing to compare
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


@pytest.mark.process
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


# -- outputs -----------------------------------------------------------------------------------


def test_a_recorded_run_agrees_with_itself_and_another_net_does_not(model: Path, tmp_path: Path) -> None:
    files, file = (model / "deploy.prototxt", model / "weights.caffemodel"), tmp_path / "io.npz"
    bridge.verify(*files, engines=["onnxruntime"], record=file, seed=3)
    with np.load(file) as arrays:
        assert {"in:data", "out:prob", "blob:conv2", "top:conv2:conv2", "top:bn2:conv2"} <= set(arrays)
    report = bridge.verify(*files, engines=["onnxruntime"], readers=(), recorded=file)
    assert report.passed
    assert report.outputs[0].count("same") == 13

    other = make(NET)
    layers = [
        layer if layer.name != "bn2" else build_layer(with_eps(layer.definition), [b for _, b in layer.blobs.entries()])
        for layer in other.layers
    ]
    bridge.save(other.replace(layers=tuple(layers)), tmp_path / "other.caffemodel")
    report = bridge.verify(tmp_path / "other.caffemodel", engines=["onnxruntime"], readers=(), recorded=file)
    assert report.first_difference is not None
    assert report.first_difference.layer == "bn2"
    assert report.first_difference.inputs[0].startswith("conv2: 2 x 8 x 9 x 9, ")


def with_eps(definition: Any) -> Any:
    changed_definition = definition.copy()
    changed_definition.set("batch_norm_param", prototxt.parse("eps: 0.001"))
    return changed_definition


def test_only_the_layer_at_fault_fails_not_those_behind_it(model: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    planted = onnx.load(model / "net.onnx")
    FAULTS["k of LRN ignored"][1](planted)
    onnx.save(planted, tmp_path / "planted.onnx")
    report = against(model, tmp_path / "planted.onnx")
    assert [top.layer for top in report.outputs[-1].tops if top.status == "different"] == ["norm1"]
    behind = next(top for top in report.outputs[-1].tops if top.layer == "conv2")
    assert behind.metrics is not None
    assert behind.alone is not None
    assert behind.metrics.mismatches > 0
    assert behind.alone.mismatches == 0


def test_a_graph_that_cannot_run_to_its_end_is_compared_as_far_as_it_runs(model: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    planted = onnx.load(model / "net.onnx")
    FAULTS["dilation ignored"][1](planted)
    onnx.save(planted, tmp_path / "planted.onnx")
    report = against(model, tmp_path / "planted.onnx")
    assert any("cannot be run" in remark for remark in report.remarks)
    assert "shape 2 x 8 x 9 x 9 against 2 x 8 x 11 x 11" in str(report.first_difference)
    behind = next(top for top in report.outputs[0].tops if top.layer == "relu2")
    assert (behind.status, behind.why) == (
        "same",
        "shape 2 x 8 x 9 x 9 against 2 x 8 x 11 x 11, as earlier layers have it",
    )


def test_an_export_with_its_weights_beside_it_is_run_where_it_lies(model: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bridge.export_onnx(make(NET), tmp_path / "net.onnx", external_data="file")
    report = against(model, tmp_path / "net.onnx")
    assert report.passed, str(report)
    assert report.outputs[0].count("same") == 12

    moved = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../net.onnx.data"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "net.onnx").write_bytes(moved.SerializeToString())
    report = against(model, tmp_path / "inner" / "net.onnx")
    assert not report.outputs
    assert any("outside the model's folder" in remark for remark in report.remarks)


def test_tolerances_of_the_user_override_the_bounds(model: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    planted = onnx.load(model / "net.onnx")
    FAULTS["another eps of BatchNorm"][1](planted)
    onnx.save(planted, tmp_path / "planted.onnx")
    files = {"against": tmp_path / "planted.onnx", "engines": ["onnxruntime"], "readers": ()}
    deploy, weights = model / "deploy.prototxt", model / "weights.caffemodel"
    loose = bridge.verify(deploy, weights, **files, rtol=1.0, atol=1.0)
    assert loose.passed
    assert {top.bound for top in loose.outputs[0].tops if top.layer == "scale2"} == {"as given: 1 + 1 x |value|"}
    single = bridge.verify(deploy, weights, **files, rtol={"": 1.0, "sum": 0.0}, atol={"": 1.0, "sum": 1e-9})
    assert [top.top for top in single.outputs[0].tops if top.status == "different"] == ["sum"]


def test_isolation_judges_every_layer_alone(model: Path) -> None:
    need("chainer")
    report = bridge.verify(
        model / "deploy.prototxt", model / "weights.caffemodel", engines=["onnxruntime", "chainer"], isolate=True
    )
    assert report.passed, str(report)
    assert all(top.alone is not None for top in report.outputs[0].tops)


def test_an_engine_that_was_asked_for_must_work(model: Path) -> None:
    with pytest.raises(UsageError, match="no engine 'caffe2'"):
        bridge.verify(model / "deploy.prototxt", model / "weights.caffemodel", engines=["caffe2"])


def test_recorded_inputs_must_be_those_of_the_net(tmp_path: Path) -> None:
    np.savez(tmp_path / "io.npz", **{"in:other": np.zeros(1), "out:prob": np.zeros(1)})
    with pytest.raises(UsageError, match="records no input 'data'"):
        bridge.verify(DEPLOY, WEIGHTS, recorded=tmp_path / "io.npz")
    np.savez(tmp_path / "io.npz", **{"in:data": np.zeros((1, 3, 28, 28)), "out:prob": np.zeros(1)})
    with pytest.raises(ModelError, match=r"conv1.*blob 'weight' has 400 values \(16 x 1 x 5 x 5\)"):
        bridge.verify(DEPLOY, WEIGHTS, recorded=tmp_path / "io.npz")
    np.savez(tmp_path / "io.npz", other=np.zeros(1))
    with pytest.raises(FormatError, match="has no key"):
        bridge.verify(DEPLOY, WEIGHTS, recorded=tmp_path / "io.npz")
    (tmp_path / "io.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(FormatError, match="is a damaged NumPy file"):
        bridge.verify(DEPLOY, WEIGHTS, recorded=tmp_path / "io.npz")
    with pytest.raises(MissingFileError):
        bridge.verify(DEPLOY, WEIGHTS, recorded=tmp_path / "none.npz")


def test_what_is_recorded_is_not_passed_over_where_nothing_can_run_the_net(tmp_path: Path) -> None:
    need("chainer")
    net = bridge.load(DEPLOY, WEIGHTS)
    odd = prototxt.parse('layer { name: "odd" type: "Fancy" bottom: "prob" top: "odd" }').messages("layer")[0]
    bridge.save(net.replace(layers=(*net.layers, build_layer(odd))), tmp_path / "odd.npz")
    report = bridge.verify(tmp_path / "odd.npz", against=WEIGHTS, recorded=FASHION / "io.npz", subset=True)
    assert not report.differences
    assert report.status == 2
    assert report.undone == ("nothing can run the net here, so nothing was compared with what is recorded",)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fc6"):
        bridge.verify(DEPLOY, WEIGHTS, inputs={"data": (1, 1, 20, 20)})


def test_weights_alone_are_no_error_but_outputs_then_are_not_compared(tmp_path: Path) -> None:
    need("onnxruntime")
    net = bridge.load(DEPLOY, WEIGHTS)
    bridge.save(net.replace(layers=net.layers[1:]), tmp_path / "bare.caffemodel")
    report = bridge.verify(tmp_path / "bare.caffemodel", against=WEIGHTS)
    assert report.passed
    assert not report.outputs
    assert any("the shape of input 'data' is not known" in remark for remark in report.remarks)
    shaped = bridge.verify(tmp_path / "bare.caffemodel", inputs={"data": (2, 1, 28, 28)}, against=WEIGHTS)
    assert shaped.inputs[0].startswith("data 2 x 1 x 28 x 28")


def test_the_package_can_be_called_whichever_was_imported_first() -> None:
    code = "import bridge.verification, bridge; print(bridge.verify('a', 'b', 'c'))"
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: 3 files are given, expected [PROTOTXT] WEIGHTS" in done.stderr


@pytest.mark.caffe
def test_the_real_caffe_is_one_of_the_engines(model: Path) -> None:
    need("onnxruntime")
    report = bridge.verify(model / "deploy.prototxt", model / "weights.caffemodel", engines=["onnxruntime", "pycaffe"])
    assert report.passed, str(report)
    assert report.outputs[0].count("same") == 13
    reverse = bridge.verify(
        model / "deploy.prototxt", model / "weights.caffemodel", engines=["pycaffe", "onnxruntime"], isolate=True
    )
    assert reverse.passed, str(reverse)


@pytest.mark.caffe
@pytest.mark.parametrize(
    ("phase", "readers"),
    [("TEST", ["protobuf", "pycaffe"]), ("TEST", ["pycaffe", "protobuf"]), ("TRAIN", ["protobuf", "pycaffe"])],
)
def test_the_real_caffe_leaves_out_what_its_net_has_not(tmp_path: Path, phase: str, readers: list[str]) -> None:
    need("onnxruntime")
    bridge.save(make(NET), tmp_path / "weights.caffemodel")
    text = NET.replace('name: "branch"', 'name: "branch" include { phase: TRAIN }').replace(
        'bottom: "branch" top: "sum" eltwise_param { coeff: 1 coeff: -0.5 }', 'bottom: "conv2" top: "sum"'
    )
    (tmp_path / "net.prototxt").write_text(text)
    report = bridge.verify(
        tmp_path / "net.prototxt",
        tmp_path / "weights.caffemodel",
        phase=phase,
        readers=readers,
        engines=["onnxruntime", "pycaffe"],
    )
    assert report.passed, str(report)
    unseen = {blob.layer: blob.why for blob in report.weights[0].blobs if blob.status == "not compared"}
    assert unseen == {"branch": "pycaffe: delivers no layer that its net has not"}
    assert ("branch" in {top.layer for top in report.outputs[0].tops}) == (phase == "TRAIN")
    assert report.outputs[0].count("not compared") == 0


@pytest.mark.parametrize("engine", ["opencv", "opencv_onnx"])
def test_opencv_runtimes_are_engines_that_must_be_asked_for(engine: str) -> None:
    need("onnxruntime", "cv2")
    cv2 = importlib.import_module("cv2")
    if engine == "opencv" and not hasattr(cv2.dnn, "readNetFromCaffe"):
        missing("opencv4", f"OpenCV {cv2.__version__} has no importer of Caffe files")
    report = bridge.verify(DEPLOY, WEIGHTS, engines=["onnxruntime", engine])
    assert report.passed, str(report)
    assert report.outputs[0].count("same") == 15
    assert engine not in engines.available()


@pytest.mark.parametrize("against", [True, False])
def test_a_graph_of_another_size_is_told_in_one_line(model: Path, against: bool) -> None:
    files = [model / "deploy.prototxt", model / "weights.caffemodel"] if against else [model / "net.onnx"]
    report = bridge.verify(
        *files, against=model / "net.onnx" if against else None, inputs={"data": (3, 4, 16, 16)}, readers=()
    )
    assert report.undone == (
        f"the graph was not run: {model / 'net.onnx'}: input 'data' is batch x 4 x 17 x 17 in the graph, "
        "and was fed with 3 x 4 x 16 x 16",
    )
    assert report.status == 2
    assert "0 tops" not in str(report)


def test_a_second_model_that_cannot_be_run_is_not_passed_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.prototxt").write_text(
        NET.replace("AVE kernel_size: 3 stride: 2", "AVE kernel_size: 3 stride: 4")
    )
    weights = model / "weights.caffemodel"
    report = bridge.verify(
        model / "deploy.prototxt", weights, against=[tmp_path / "other.prototxt", weights], skip_checks=["shapes"]
    )
    assert not report.differences
    assert report.status == 2
    assert report.undone[0].startswith(f"outputs were not compared with {weights}: ")


def test_a_net_that_writes_nothing_says_so(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    net = make(NET)
    bridge.save(net.replace(layers=net.layers[:1]), tmp_path / "input.caffemodel")
    report = bridge.verify(tmp_path / "input.caffemodel")
    assert report.status == 2
    assert "outputs: onnxruntime against chainer\n  not compared: no layer writes anything" in str(report)
