"""What old scripts ask of a net from ``readNetFromCaffe``: values inside it, its layers, their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import NotFoundError, UsageError
from tests.conftest import need

TEXT = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 12 input_dim: 12
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "last"
  convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "side" type: "Power" bottom: "pool1" top: "side" power_param { scale: 2 } }
layer { name: "prob" type: "Softmax" bottom: "last" top: "prob" }
layer { name: "quiet" type: "Silence" bottom: "prob" }
"""


@pytest.fixture
def net(tmp_path: Path) -> Any:
    """The net in OpenCV by this package's way, also where OpenCV has its own."""
    need("cv2", "onnx")
    import cv2

    from bridge.opencv import reading
    from bridge.opencv.net import CaffeNet

    rng = np.random.default_rng(0)
    (tmp_path / "net.prototxt").write_text(TEXT)
    loaded = bridge.load(tmp_path / "net.prototxt")
    shapes = {"conv1": [(4, 3, 3, 3), (4,)], "conv2": [(2, 4, 3, 3), (2,)]}
    layers = tuple(
        layer.with_blobs([bridge.Blob.of(rng.normal(0, 0.2, s).astype(np.float32)) for s in shapes[layer.name]])  # type: ignore[attr-defined]
        if layer.name in shapes
        else layer
        for layer in loaded.layers
    )
    return CaffeNet(reading._served(loaded.replace(layers=layers)), lambda each: reading._opened(cv2, each))


def values(net: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer gives, by its name, in plain NumPy."""

    def conv(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = net.getLayer(name).blobs
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
        found: np.ndarray = np.einsum("nchwij,ocij->nohw", windows, weight) + bias.reshape(-1, 1, 1)
        return found

    first = conv("conv1", x)
    relu = np.maximum(first, 0)
    pool = relu.reshape(len(x), 4, 5, 2, 5, 2).max((3, 5))
    last = conv("conv2", pool)
    prob = np.exp(last) / np.exp(last).sum(1, keepdims=True)
    return {"conv1": first, "relu1": relu, "pool1": pool, "conv2": last, "side": 2 * pool, "prob": prob}


X = np.random.default_rng(1).normal(size=(1, 3, 12, 12)).astype(np.float32)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_values_inside_the_net(net: Any) -> None:
    net.setInput(X, "data")
    wanted = values(net, X)
    for name, value in wanted.items():
        close(net.forward(name), value)
    close(net.forward("last"), wanted["conv2"])  # a blob's name
    close(net.forward(), wanted["prob"])
    for found, name in zip(net.forward(["pool1", "prob"]), ("pool1", "prob"), strict=True):
        close(found, wanted[name])
    net.setInput(2 * X)
    close(net.forward("conv1"), values(net, 2 * X)["conv1"])
    with pytest.raises(NotFoundError, match=r"no layer 'conv3'(.|\n)*conv"):
        net.forward("conv3")


def test_names_and_numbers(net: Any) -> None:
    import cv2

    assert isinstance(net, cv2.dnn.Net)
    names = net.getLayerNames()
    assert names == ("conv1", "relu1", "pool1", "conv2", "side", "prob")
    assert [names[number - 1] for number in net.getUnconnectedOutLayers()] == ["side", "prob"]
    assert net.getUnconnectedOutLayersNames() == ("side", "prob")
    assert (net.getLayerId("pool1"), net.getLayerId("none"), net.empty()) == (3, -1, False)
    assert (net.getLayer(4).name, net.getLayer("conv2").type) == ("conv2", "Convolution")
    assert net.getLayer("conv2").outputNameToIndex("any") == 0
    assert [blob.shape for blob in net.getLayer("conv2").blobs] == [(2, 4, 3, 3), (1, 2)]
    assert net.getParam("conv2", 1).shape == (1, 2)
    first = net.getLayer(0)
    assert (first.name, net.getLayerId(first.name), first.blobs) == ("_input", 0, [])
    assert [first.outputNameToIndex(name) for name in ("data", "im_info")] == [0, -1]  # as detection scripts ask
    for wrong in (-1, 7, "none"):
        with pytest.raises(NotFoundError, match="no layer"):
            net.getLayer(wrong)


def test_weights_that_a_script_sets(net: Any) -> None:
    """As colorization scripts do."""
    net.setInput(X)
    before = net.forward("conv2")
    weight = np.random.default_rng(2).normal(0, 0.2, (2, 4, 3, 3)).astype(np.float32)
    net.getLayer(net.getLayerId("conv2")).blobs = [weight, np.full([1, 2], 2.5, np.float32)]
    wanted = values(net, X)
    close(net.forward("conv2"), wanted["conv2"])  # the input is still there
    close(net.forward("prob"), wanted["prob"])
    assert np.abs(before - wanted["conv2"]).max() > 0.1
    net.setParam("conv2", 1, np.zeros((1, 2)))
    np.testing.assert_array_equal(net.getLayer("conv2").blobs[0], weight)
    assert not net.getParam("conv2", 1).any()
    with pytest.raises(UsageError, match=r"layer 'conv2' \(Convolution\): blobs are 3 x 3, expected 2 x 4 x 3 x 3, 2"):
        net.getLayer("conv2").blobs = [np.zeros((3, 3))]


def test_an_input_with_a_mean_and_a_scale(net: Any) -> None:
    """As OpenCV's detection sample gives it: 8-bit values, and what to do with them."""
    pixels = np.random.default_rng(3).integers(0, 9, (1, 3, 12, 12), np.uint8)
    for mean, scale in (((4, 5, 6), 0.2), ((4.0, 5.0, 6.0, 0.0), 1.0), ((), 0.5), ([7], 1.0)):
        net.setInput(pixels, scalefactor=scale, mean=mean)
        means = np.array([*mean, 0, 0, 0][:3], np.float32).reshape(3, 1, 1)
        close(net.forward("conv1"), values(net, (pixels - means) * np.float32(scale))["conv1"])


def test_what_is_set_counts_for_parts_too(net: Any) -> None:
    import cv2

    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
    net.setInput(X)
    close(net.forward("pool1"), values(net, X)["pool1"])
    net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
    with pytest.raises(AttributeError):
        net.noSuchMethod()


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (30, 40, 3), np.uint8)


def test_models_that_wrap_a_net(net: Any, image: np.ndarray) -> None:
    """Each gives what a script gets that prepares the image and reads the output itself."""
    import cv2

    from bridge.opencv import models

    def outputs(*names: str, size: tuple[int, int] = (12, 12), crop: bool = False) -> Any:
        net.setInput(cv2.dnn.blobFromImage(image, 0.1, size, (9, 8, 7), swapRB=True, crop=crop))
        return net.forward(list(names))

    made = models.SegmentationModel(net).setInputScale(0.1).setInputMean((9, 8, 7)).setInputSwapRB(True)
    close(made.predict(image)[0], outputs("side", "prob")[0])
    assert len(made.predict(image)) == 2
    with pytest.raises(UsageError, match="the net has 2 outputs, expected one"):
        made.segment(image)
    made.setOutputNames(["conv1"])
    mask = made.segment(image)
    np.testing.assert_array_equal(mask, outputs("conv1")[0][0].argmax(0))
    assert mask.dtype == np.uint8
    assert len(np.unique(mask)) > 1
    made.setInputCrop(True).setOutputNames(["side"])
    close(made.predict(image)[0], outputs("side", crop=True)[0])

    params = {"scale": 0.1, "size": (12, 12), "mean": (9, 8, 7), "swapRB": True}
    keypoints = models.KeypointsModel(net).setOutputNames(["conv1"])
    keypoints.setInputParams(**params)
    maps = outputs("conv1")[0][0, :3]
    places = np.array([np.unravel_index(each.argmax(), each.shape) for each in maps])[:, ::-1] * [4, 3]
    found = keypoints.estimate(image, float(np.sort(maps.max((1, 2)))[1]))  # two points stay below
    assert sorted(map(tuple, found))[:2] == [(-1, -1), (-1, -1)]
    np.testing.assert_array_equal(keypoints.estimate(image, -1e9), places)

    classes = models.ClassificationModel(net).setOutputNames(["conv2"])
    classes.setInputParams(**params)
    scores = outputs("conv2")[0].ravel()
    assert classes.classify(image) == (scores.argmax(), scores.max())
    classes.setEnableSoftmaxPostProcessing(True)
    np.testing.assert_allclose(classes.classify(image)[1], np.exp(scores.max()) / np.exp(scores).sum(), rtol=1e-5)
    with pytest.raises(UsageError, match=r"layer 'prob' \(Softmax\) puts out no detections"):
        models.DetectionModel(net).detect(image)


def test_boxes_of_detections() -> None:
    """As OpenCV's model.cpp: parts of the image, or pixels where there are more than two; inside the image."""
    from bridge.opencv.models import _boxes

    rows = np.zeros((4, 7), np.float32)
    rows[:, 3:] = [[0.1, 0.2, 0.5, 0.6], [10, 20, 30, 40], [-0.5, 0.5, 2, 0.5], [-3, 4, 200, 8]]
    assert _boxes(rows, 50, 100).tolist() == [[10, 10, 41, 21], [10, 20, 21, 21], [0, 25, 100, 1], [0, 4, 100, 5]]


def test_install_lets_model_classes_take_caffe_nets(
    net: Any, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    from bridge.opencv import models, reading

    for owner, name in ((cv2.dnn, "readNetFromCaffe"), *_model_names(cv2)):
        monkeypatch.setattr(owner, name, getattr(owner, name, None), raising=False)
    monkeypatch.setattr(cv2.dnn, "readNet", cv2.dnn.readNet)
    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe")
    monkeypatch.setattr(cv2.dnn, "DNN_BACKEND_HALIDE", 1, raising=False)
    monkeypatch.delattr(cv2.dnn, "DNN_BACKEND_HALIDE")
    monkeypatch.setattr(reading, "readNetFromCaffe", lambda *files: net)
    monkeypatch.setattr(reading, "_ORIGINAL", {})
    own = cv2.dnn.DetectionModel
    reading.install()
    for made in (cv2.dnn.DetectionModel(net), cv2.dnn_DetectionModel("a.caffemodel", "a.prototxt")):
        assert type(made) is models.DetectionModel
    assert issubclass(cv2.dnn.DetectionModel, own)
    assert cv2.dnn.DNN_BACKEND_HALIDE == 1
    with pytest.raises((SystemError, cv2.error)):  # what OpenCV's own class raises
        cv2.dnn.ClassificationModel("none.onnx")
    with pytest.raises(cv2.error):
        cv2.dnn.readNet("none.onnx", None, None)


def _model_names(cv2: Any) -> list[tuple[Any, str]]:
    from bridge.opencv.models import _OURS

    return [(owner, prefix + each) for each in _OURS for owner, prefix in ((cv2.dnn, ""), (cv2, "dnn_"))]


@pytest.mark.parametrize("framework", [None, "", "caffe", "Caffe"])
def test_read_net_takes_what_samples_give(framework: str | None) -> None:
    from bridge.opencv.reading import _caffe_files

    assert _caffe_files("a.caffemodel", "a.prototxt", framework) == ("a.prototxt", "a.caffemodel")


def test_a_script_may_wrap_what_install_put_in_place(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    from bridge.opencv import reading

    monkeypatch.setattr(reading, "_ORIGINAL", {})
    for name in ("readNet", "readNetFromCaffe"):
        monkeypatch.setattr(cv2.dnn, name, getattr(reading, name), raising=False)
        assert reading._own(cv2, name) is None
        monkeypatch.setattr(cv2.dnn, name, lambda *files: pytest.fail("it calls itself"))
    bridge.save(net._net, tmp_path / "net.caffemodel")
    assert reading.readNetFromCaffe(tmp_path / "net.prototxt", tmp_path / "net.caffemodel").getLayerId("conv1") == 1
