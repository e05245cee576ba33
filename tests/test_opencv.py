"""The door that OpenCV had: readNetFromCaffe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.errors import BridgeError, FormatError, MissingFileError, ModelError
from tests.conftest import FASHION, GOLDEN, ROOT, missing, need, zoo
from tests.nets import Session, make, random_inputs

FEW = {"detection_output": "its rows are padded"}

SSD = """
input: "data" input_shape { dim: 1 dim: 3 dim: 32 dim: 40 }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 8 kernel_size: 3 stride: 4 pad: 1 } }
layer { name: "loc" type: "Convolution" bottom: "c" top: "loc" convolution_param { num_output: 8 kernel_size: 1 } }
layer { name: "pl" type: "Permute" bottom: "loc" top: "pl" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "fl" type: "Flatten" bottom: "pl" top: "fl" }
layer { name: "conf" type: "Convolution" bottom: "c" top: "conf" convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "pc" type: "Permute" bottom: "conf" top: "pc" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "rc" type: "Reshape" bottom: "pc" top: "rc" reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
layer { name: "sc" type: "Softmax" bottom: "rc" top: "sc" softmax_param { axis: 2 } }
layer { name: "fc" type: "Flatten" bottom: "sc" top: "fc" }
layer { name: "prior" type: "PriorBox" bottom: "c" bottom: "data" top: "prior" prior_box_param { min_size: 9 max_size: 14 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }
layer { name: "out" type: "DetectionOutput" bottom: "fl" bottom: "fc" bottom: "prior" top: "out" detection_output_param {
  num_classes: 3 share_location: true background_label_id: 0 code_type: CENTER_SIZE keep_top_k: 90 confidence_threshold: 0.4 nms_param { nms_threshold: 0.45 top_k: 40 } } }
"""  # noqa: E501
KEEP = 90
"""keep_top_k: more than the 2 x top_k rows of an image."""


@pytest.fixture(autouse=True)
def _packages() -> None:
    need("cv2", "onnx")


@pytest.fixture
def read() -> Callable[..., Any]:
    from bridge.opencv import readNetFromCaffe

    return readNetFromCaffe


def ours(*files: Any) -> Any:
    """The net in OpenCV by this package's way, also where OpenCV has its own."""
    import cv2

    from bridge.opencv import reading

    return reading._to_opencv(cv2, reading._load(*files))


def opencv(major: int) -> bool:
    import cv2

    return int(cv2.__version__.partition(".")[0]) == major


@pytest.mark.parametrize("folder", [case for case in GOLDEN if case.name not in FEW], ids=lambda case: case.name)
def test_computes_what_caffe_recorded(folder: Path) -> None:
    if not opencv(5):
        pytest.skip("OpenCV 4 has its own reader, whose numbers are its own")
    with np.load(folder / "io.npz") as io:
        values = dict(io)
    net = ours(folder / "deploy.prototxt", folder / "weights.caffemodel")
    for name, value in values.items():
        if name.startswith("in:"):
            net.setInput(value.astype(np.float32), name[3:])
    for name in net.getUnconnectedOutLayersNames():
        found, wanted = net.forward(name), values.get(f"out:{name}")
        if wanted is not None:
            scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4 * scale)


def test_the_alexnet_in_miniature_by_path_and_by_buffer(read: Callable[..., Any]) -> None:
    files = FASHION / "deploy.prototxt", next(FASHION.glob("*.caffemodel"))
    with np.load(FASHION / "io.npz") as io:
        x, wanted = io["in:data"].astype(np.float32), io["out:prob"]
    buffers = [path.read_bytes() for path in files]
    arrays = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
    for given in (files, [str(path) for path in files], buffers, arrays):
        net = read(*given)
        net.setInput(x)
        np.testing.assert_allclose(net.forward("prob"), wanted, atol=1e-5)


def padded(rows: np.ndarray, images: int, keep: int) -> np.ndarray:
    """Detections as OpenCV puts them out."""
    found = rows.reshape(-1, 7)
    found = found[found[:, 1] >= 0]
    made = np.zeros((1, 1, images * keep, 7), np.float32)
    made[0, 0, : len(found)] = found
    return made


@pytest.mark.parametrize("shape", [(1, 3, 32, 40), (1, 3, 48, 64), (3, 3, 32, 40), (2, 3, 57, 33)])
@pytest.mark.parametrize("share", [True, False], ids=["shared boxes", "a box for each class"])
def test_a_detector_takes_any_size_and_pads_its_rows(shape: tuple[int, ...], share: bool, tmp_path: Path) -> None:
    need("onnxruntime")
    if not opencv(5):
        pytest.skip("OpenCV 4 cannot load NonMaxSuppression; it reads Caffe's detectors itself")
    text = (
        SSD
        if share
        else SSD.replace("share_location: true", "share_location: false").replace(
            'top: "loc" convolution_param { num_output: 8', 'top: "loc" convolution_param { num_output: 24'
        )
    )
    model = make(text, seed=3)
    bridge.save(model, tmp_path / "ssd.caffemodel")
    (tmp_path / "ssd.prototxt").write_text(text)
    x = np.random.default_rng(sum(shape)).uniform(-0.5, 0.5, shape).astype(np.float32)
    resized = model.with_input_shapes({"data": shape})
    wanted = padded(Session(resized)({"data": x})["out"], shape[0], KEEP)
    assert 0 < np.count_nonzero(wanted[0, 0, :, 2]) < shape[0] * KEEP
    net = ours(tmp_path / "ssd.prototxt", tmp_path / "ssd.caffemodel")
    net.setInput(x)
    np.testing.assert_allclose(net.forward(), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_detected_is_rows_of_zeros(tmp_path: Path, read: Callable[..., Any]) -> None:
    text = SSD.replace("confidence_threshold: 0.4", "confidence_threshold: 0.9999")
    bridge.save(make(text), tmp_path / "ssd.caffemodel")
    net = read(text.encode(), (tmp_path / "ssd.caffemodel").read_bytes())
    net.setInput(np.zeros((2, 3, 32, 40), np.float32))
    np.testing.assert_array_equal(net.forward(), np.zeros((1, 1, 2 * KEEP, 7), np.float32))


@pytest.mark.zoo
def test_a_real_detector_at_two_sizes() -> None:
    need("onnxruntime")
    if not opencv(5):
        pytest.skip("OpenCV 4 cannot load NonMaxSuppression; it reads Caffe's detectors itself")
    folder = zoo("wechat_detect")
    files = next(folder.glob("*.prototxt")), next(folder.glob("*.caffemodel"))
    model, net = bridge.load(*files), ours(*files)
    name, shape = next(iter(model.inputs.items()))
    assert shape is not None
    for height, width in ((shape[2], shape[3]), (256, 320)):
        x = np.random.default_rng(0).uniform(0, 1, (1, shape[1], height, width)).astype(np.float32)
        rows = Session(model.with_input_shapes({name: x.shape}))({name: x})
        net.setInput(x)
        wanted = padded(next(iter(rows.values())), 1, net.forward().shape[2])
        np.testing.assert_allclose(net.forward(), wanted, rtol=1e-4, atol=1e-5)


def test_a_net_of_convolutions_takes_any_size_and_batch(tmp_path: Path) -> None:
    text = """
    input: "data" input_shape { dim: 1 dim: 3 dim: 16 dim: 16 }
    layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    """
    need("onnxruntime")
    model = make(text)
    bridge.save(model, tmp_path / "net.caffemodel")
    net = ours(text.encode(), tmp_path / "net.caffemodel")
    for shape in ((1, 3, 16, 16), (4, 3, 31, 18)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        net.setInput(x)
        wanted = Session(model.with_input_shapes({"data": shape}))({"data": x})["p"]
        np.testing.assert_allclose(net.forward(), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())  # Winograd's


def test_read_net_takes_both_orders_and_names_the_framework() -> None:
    from bridge.opencv import readNet

    model = next(FASHION.glob("*.caffemodel"))
    text = FASHION / "deploy.prototxt"
    with np.load(FASHION / "io.npz") as io:
        x, wanted = io["in:data"].astype(np.float32), io["out:prob"]
    calls = [
        (str(model), str(text)),
        (str(text), str(model)),
        (str(model), str(text), "Caffe"),
        ("caffe", np.frombuffer(model.read_bytes(), np.uint8), np.frombuffer(text.read_bytes(), np.uint8)),
    ]
    for call in calls:
        net = readNet(*call)
        net.setInput(x)
        np.testing.assert_allclose(net.forward("prob"), wanted, atol=1e-5)


def test_install_gives_opencv_its_name_back_and_other_files_stay_its_own(tmp_path: Path) -> None:
    files = FASHION / "deploy.prototxt", next(FASHION.glob("*.caffemodel"))
    bridge.export_onnx(bridge.load(*files), tmp_path / "m.onnx", check=False)
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import cv2, bridge.opencv
bridge.opencv.install(); bridge.opencv.install()
net = cv2.dnn.readNetFromCaffe({str(files[0])!r}, {str(files[1])!r})
print(net.getUnconnectedOutLayersNames())
print(cv2.dnn.readNet({str(tmp_path / "m.onnx")!r}).empty())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "('prob',)\nFalse\n", done.stderr


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    text, model = FASHION / "deploy.prototxt", next(FASHION.glob("*.caffemodel"))
    with pytest.raises(MissingFileError, match="absent"):
        ours(tmp_path / "absent.prototxt", model)
    with pytest.raises(ModelError, match=r"has no weights, and \d+ more\n  hint: give the caffemodel"):
        ours(text, b"")
    with pytest.raises(FormatError):
        ours(text.read_bytes(), model.read_bytes()[:5000])
    with pytest.raises(BridgeError):
        ours(b"<html></html>", model.read_bytes())


LACKED = """
input: "data" input_dim: 1 input_dim: 4 input_dim: 8 input_dim: 8
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "t" type: "Threshold" bottom: "c" top: "t" }
layer { name: "r" type: "ReLU" bottom: "t" top: "r" }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 } }
"""


def test_the_engine_runs_what_lies_before_a_layer_that_it_lacks() -> None:
    """Threshold is none of its types; the last layer goes by its top's name, and its pooling has two tops."""
    need("onnxruntime")
    if not opencv(4):
        missing("opencv4", "OpenCV 5 has no importer of Caffe files")
    net = make(LACKED)
    inputs = random_inputs(net)
    engine = engines.make_partial("opencv", net)
    found = {layer.name: top for layer, (top,) in zip(net, engine.tops(inputs), strict=True)}
    truth = engines.make("onnxruntime", net).tops(inputs)
    expected = {layer.name: top for layer, (top,) in zip(net, truth, strict=True)}
    assert found["t"] is None
    assert found["r"] is None
    for name in ("c", "pool"):
        np.testing.assert_allclose(found[name], expected[name], 1e-4, 1e-5)
    assert type(engines.make_partial("opencv", net.with_outputs("p"))) is not type(engine)
