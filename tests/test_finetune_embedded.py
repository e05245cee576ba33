"""--embed-preprocessing: a run's model.onnx takes pictures as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from tests.conftest import ROOT, need
from tests.finetuning import MODEL, call, config, run, small_npz

COLOUR = """\
name: "colour"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 14 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
NAMES = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def _needs() -> None:
    need("chainer", "onnxruntime", "PIL")


def colour_pictures(root: Path) -> Path:
    """Pictures of three colours and many sizes, so that the order of channels decides about the class."""
    from PIL import Image

    rng = np.random.default_rng(3)
    for place, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 120, (20 + 3 * number, 40 - number, 3), np.uint8)
            pixels[..., 2 - place] += 130
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def settings(tmp_path: Path, **changes: Any) -> Any:
    (tmp_path / "net.prototxt").write_text(COLOUR)
    net = bridge.load(tmp_path / "net.prototxt")
    weights = {"weight": np.zeros((3, 504), np.float32), "bias": np.zeros(3, np.float32)}
    bridge.save(net.with_blobs("fc", **weights), tmp_path / "net.caffemodel")
    files = (str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    data = str(colour_pictures(tmp_path / "pictures"))
    usual: dict[str, Any] = {"files": files, "data": data, "heads": ("fc=3",), "freeze": (), "scale": 1 / 256}
    return config(tmp_path, **{**usual, "embed_preprocessing": True, "epochs": 4, **changes})


@pytest.mark.parametrize("changes", [{}, {"resize": (16, 18), "crop": (12, 14), "mean": "10,20,30"}, {"swap": True}])
def test_the_model_takes_pictures_of_any_size_as_they_are(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Its scores are those of predict, but for what Pillow rounds to whole pixels."""
    import onnxruntime
    from PIL import Image

    from bridge.finetuning import classify

    made = run(settings(tmp_path, **changes))
    folder = made.config.folder
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [(value.type, value.shape[1:]) for value in session.get_inputs()] == [
        ("tensor(uint8)", ["height", "width", 3])
    ]
    for place, name in enumerate(NAMES):
        path = tmp_path / "pictures" / name / "5.png"
        scores = session.run(None, {"data": np.asarray(Image.open(path))[None]})[0][0]
        told = {entry["class"]: entry["score"] for entry in classify(folder, [path], 3)[0]}
        assert scores.argmax() == place
        np.testing.assert_allclose(scores, [told[name] for name in NAMES], atol=0.02)


def test_predict_has_the_numbers_of_a_model_without_it(tmp_path: Path) -> None:
    from bridge.finetuning import classify

    made = run(settings(tmp_path, resize=(16, 18), crop=(12, 14), mean="10,20,30"))
    pictures = [tmp_path / "pictures" / name / "7.png" for name in NAMES]
    embedded = classify(made.config.folder, pictures, 3)
    run(settings_again(made.config))
    plain = classify(made.config.folder, pictures, 3)
    for one, other in zip(embedded, plain, strict=True):
        assert [entry["class"] for entry in one] == [entry["class"] for entry in other]
        np.testing.assert_allclose([e["score"] for e in one], [e["score"] for e in other], rtol=1e-5)


def settings_again(before: Any) -> Any:
    """The same run, whose files are made again without the preprocessing."""
    import dataclasses

    return dataclasses.replace(before, embed_preprocessing=False, resume=True)


def test_the_lines_of_code_for_such_a_model_run(tmp_path: Path) -> None:
    made = run(settings(tmp_path))
    text = (made.config.folder / "use.txt").read_text()
    lines = text.split("# ONNX Runtime: model.onnx\n")[1].split("\n\n")[0]
    code = f"{lines}\nprint(*scores.ravel().tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=made.config.folder, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 3


def test_the_command_takes_it(tmp_path: Path) -> None:
    import onnxruntime

    data = small_npz(tmp_path / "data.npz", 40)
    line = ["finetune", *MODEL, "--data", data, "--head", "fc8=4", "--scale", "0.004", "--train-head", "--epochs", "1"]
    done = call(*line, "--embed-preprocessing", "-q", "-o", tmp_path / "run")
    assert done.returncode in (0, 1), done.stderr  # one epoch may be no better than guessing
    session = onnxruntime.InferenceSession(str(tmp_path / "run" / "model.onnx"))
    assert session.get_inputs()[0].type == "tensor(uint8)"


def test_arrays_are_taken_as_the_data_have_them(tmp_path: Path) -> None:
    import onnxruntime

    made = run(config(tmp_path, embed_preprocessing=True, epochs=1))
    session = onnxruntime.InferenceSession(str(made.config.folder / "model.onnx"))
    assert session.get_inputs()[0].type == "tensor(uint8)"
    deploy = bridge.load(made.config.folder / "deploy.prototxt", made.config.folder / "model.caffemodel")
    bridge.export_onnx(deploy, tmp_path / "plain.onnx")
    plain = onnxruntime.InferenceSession(str(tmp_path / "plain.onnx"))
    x = made.train.images(np.arange(3))
    scores = plain.run(None, {"data": made.preprocess.apply(x)})[0]
    np.testing.assert_allclose(session.run(None, {"data": x})[0], scores, rtol=1e-5, atol=1e-6)
