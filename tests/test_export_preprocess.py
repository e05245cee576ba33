"""Preprocessing in an exported model: what programs do to an image before they feed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.cli import options
from bridge.errors import BridgeError, DifferenceError, UsageError
from bridge.exporting import export_onnx
from bridge.onnx_export import Preprocess
from tests.conftest import need
from tests.nets import make

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 9 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 2 kernel_size: 3 } }
"""
MEAN = np.float32([104, 117, 123])


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def plain(tmp_path: Path, x: np.ndarray) -> np.ndarray:
    """What the net computes of its own input."""
    export_onnx(make(NET), tmp_path / "plain.onnx", check=False)
    return np.asarray(session(tmp_path / "plain.onnx").run(None, {"data": np.ascontiguousarray(x)})[0])


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("swap", [False, True])
def test_an_image_as_opencv_holds_it_goes_in(tmp_path: Path, opset: int, swap: bool) -> None:
    """Eight-bit pixels, rows first, of another size than the net's: blobFromImage in the model."""
    need("onnxruntime", "cv2", "chainer")
    import cv2

    how = Preprocess(MEAN, 0.017, swap, "nhwc", True, (8, 9))
    export_onnx(make(NET), tmp_path / "net.onnx", preprocess=how, opset=opset)  # with the check
    model = session(tmp_path / "net.onnx")
    (taken,) = model.get_inputs()
    assert (taken.type, taken.shape) == ("tensor(uint8)", ["batch", "height", "width", 3])
    images = pixels(3, 23, 14, 3)
    resized = np.stack([cv2.resize(image.astype(np.float32), (9, 8)) for image in images])
    x = (resized[..., ::-1] if swap else resized).transpose(0, 3, 1, 2)
    expected = plain(tmp_path, (x - MEAN.reshape(3, 1, 1)) * np.float32(0.017))
    np.testing.assert_allclose(model.run(None, {"data": images})[0], expected, 1e-4, 1e-4)


@pytest.mark.parametrize("size", [(8, 9), (5, 30), (23, 14), (1, 1), (64, 3)])
@pytest.mark.parametrize("target", [(8, 9), (31, 4), (1, 1)])
def test_resizing_is_opencvs(size: tuple[int, int], target: tuple[int, int]) -> None:
    need("cv2")
    import cv2

    image = pixels(*size, 3).astype(np.float32)
    found = Preprocess(resize=target).apply(image.transpose(2, 0, 1)[None])[0]
    expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found.transpose(1, 2, 0), expected, 1e-5, 1e-3)


@pytest.mark.parametrize("size", [(8, 9), (5, 30), (97, 41), (1, 1), (64, 3)])
def test_a_smooth_resizing_is_pillows_and_the_middle_is_cut_out(tmp_path: Path, size: tuple[int, int]) -> None:
    """But for whole numbers, to which Pillow rounds after the rows and after the columns."""
    need("onnxruntime", "chainer", "PIL")
    from PIL import Image

    how = Preprocess(input_layout="nhwc", uint8=True, resize=(13, 20), smooth=True, crop=(8, 9))
    export_onnx(make(NET), tmp_path / "net.onnx", preprocess=how)  # with the check
    image = pixels(*size, 3)
    x = how.apply(image[None])
    np.testing.assert_allclose(
        session(tmp_path / "net.onnx").run(None, {"data": image[None]})[0], plain(tmp_path, x), 1e-4, 1e-2
    )
    resized = Image.fromarray(image).resize((20, 13), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(resized)[2:10, 5:14].transpose(2, 0, 1) - x[0]).max() <= 1


def test_a_crop_comes_back_from_metadata_and_is_undone() -> None:
    how = Preprocess(MEAN, 0.5, resize=(13, 20), smooth=True, crop=(8, 9))
    again, image = Preprocess.from_metadata(how.metadata("data"), "net.onnx")
    assert image == "data"
    assert (again.smooth, again.crop, again.resize) == (True, (8, 9), (13, 20))
    x = how.apply(pixels(2, 3, 40, 30))
    np.testing.assert_allclose(how.apply(how.undo(x)), x, atol=1e-3)
    old = {"bridge.preprocess": how.metadata("data")["bridge.preprocess"].replace(',"smooth":true,"crop":[8,9]', "")}
    assert Preprocess.from_metadata(old, "net.onnx")[0].crop is None


def test_resizing_is_the_formula() -> None:
    """Of four pixels two are made: their centres lie at 0.5 and 2.5 of the old ones."""
    row = np.float32([0, 10, 20, 60]).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(Preprocess(resize=(1, 2)).apply(row).ravel(), [5, 40])
    np.testing.assert_array_equal(Preprocess(resize=(1, 8)).apply(row).ravel(), [0, 2.5, 7.5, 12.5, 17.5, 30, 50, 60])


def test_a_resize_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    how = Preprocess(resize=(8, 9), uint8=True)
    monkeypatch.setattr(Preprocess, "apply", lambda self, image: np.zeros((2, 3, 8, 9), np.float32))
    with pytest.raises(DifferenceError, match="preprocessing of input 'data'"):
        export_onnx(make(NET), tmp_path / "net.onnx", preprocess=how, dynamic_batch=False)


@pytest.mark.parametrize("half", [False, True])
def test_recorded_inputs_become_images(tmp_path: Path, half: bool) -> None:
    need("onnxruntime")
    how = Preprocess(MEAN, 0.5, True, "nhwc", True, (8, 9))
    x = how.apply(pixels(2, 8, 9, 3))
    np.savez(tmp_path / "io.npz", **{"in:data": x, "out:c": plain(tmp_path, x)})
    export_onnx(make(NET), tmp_path / "net.onnx", preprocess=how, recorded=tmp_path / "io.npz", half=half)
    np.savez(tmp_path / "io.npz", **{"in:data": x + 0.2, "out:c": plain(tmp_path, x + 0.2)})
    with pytest.raises(UsageError, match="does not come from 8-bit pixels"):
        export_onnx(make(NET), tmp_path / "bad.onnx", preprocess=how, recorded=tmp_path / "io.npz")


def test_resize_has_the_last_word_on_height_and_width(tmp_path: Path) -> None:
    need("onnxruntime")
    how = Preprocess(resize=(6, 7))
    with pytest.raises(UsageError, match="given 8 x 9 as height and width, and resize is 6 x 7"):
        export_onnx(make(NET), tmp_path / "net.onnx", preprocess=how, inputs={"data": [1, 3, 8, 9]})
    export_onnx(make(NET), tmp_path / "net.onnx", preprocess=how, inputs={"data": [1, 3, 6, 7]}, check=False)
    model = session(tmp_path / "net.onnx")
    assert model.get_inputs()[0].shape == [1, 3, "height", "width"]
    assert model.get_outputs()[0].shape == [1, 2, 4, 5]


@pytest.mark.parametrize(
    "values", [{"input_layout": "hwc"}, {"resize": (0, 3)}, {"resize": (1, 2, 3)}, {"crop": (2, 2)}]
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected (nchw|a height|a resize)"):
        Preprocess(**values)


@pytest.mark.parametrize("text", ["224", "224x224", "0,3", "a,b", "1,2,3"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BridgeError, match="expected a height and a width"):
        options.height_width(text)
