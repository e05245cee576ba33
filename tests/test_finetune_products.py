"""What a run leaves behind: models that agree, the lines that use them, predictions, the report."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import FormatError, MissingFileError
from tests.conftest import FASHION, ROOT, chromium, need
from tests.finetuning import MODEL, call, config, log_of, run

NAMES = ("ankle boot", "bag", "coat & hat")


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("chainer", "PIL")
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    with np.load(FASHION / "fashion_mini.npz") as data:
        x, y = data["x_train"], data["y_train"]
    for label, name in zip((9, 8, 4), NAMES, strict=True):
        (root / name).mkdir()
        for index in np.flatnonzero(y == label)[:30]:
            Image.fromarray(x[index]).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    need("onnxruntime", "matplotlib")
    folder = tmp_path_factory.mktemp("made")
    return run(config(folder, data=str(pictures), heads=("fc8=3",), freeze=("conv2",), epochs=4))


def snippets(folder: Path) -> dict[str, str]:
    """The lines of ``use.txt`` by what they use."""
    parts = re.split(r"^# (.*)\n", (folder / "use.txt").read_text(), flags=re.MULTILINE)[1:]
    return {re.findall(r"[\w.]+$", title)[0]: lines for title, lines in zip(parts[::2], parts[1::2], strict=True)}


def lines_run(folder: Path, name: str) -> tuple[str, np.ndarray]:
    """The label and the scores of the lines for a file, as they stand, run in the run's folder."""
    lines = snippets(folder)
    code = f"{lines['preprocess.json']}\n{lines[name]}\n{lines['labels.txt']}\nprint(*scores.ravel().tolist())"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    label, scores = done.stdout.splitlines()
    return label.strip("[]'"), np.array(scores.split(), float)


# ---- files ----------------------------------------------------------------------------------


def test_everything_is_there(made: Any) -> None:
    folder = made.config.folder
    for name in (
        "model.onnx", "model.caffemodel", "deploy.prototxt", "model.npz", "labels.txt", "preprocess.json", "use.txt",
        "log.jsonl", "curves.png", "confusion.png", "filters.png", "report.html", "snapshot.npz", "config.json",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0
    assert (folder / "labels.txt").read_text().splitlines() == list(NAMES)
    log = log_of(folder)
    assert all({"iteration", "epoch", "loss", "accuracy", "lr"} <= record.keys() for record in log)
    assert sum("validation_loss" in record for record in log) == 4
    settings = json.loads((folder / "preprocess.json").read_text())
    assert settings == {
        "input": "data", "output": "prob", "shape": [1, 28, 28], "channel_order": "grey",
        "resize": [28, 28], "scale": 1 / 256,
        "mean": [], "crop": None, "mirror": False, "swap_channels": False,
    }  # fmt: skip


def test_the_lines_of_code_run_and_agree(made: Any) -> None:
    folder = made.config.folder
    lines = snippets(folder)
    assert all(text.strip().count("\n") == 1 for text in lines.values())
    found = {}
    for name in ("model.onnx", "model.npz"):
        label, found[name] = lines_run(folder, name)
        assert label in NAMES
    np.testing.assert_allclose(found["model.onnx"], found["model.npz"], rtol=1e-5, atol=1e-6)


@pytest.mark.caffe
def test_the_real_caffe_computes_the_same(made: Any, tmp_path: Path) -> None:
    import os

    import onnxruntime as ort

    folder = made.config.folder
    images = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    np.save(tmp_path / "images.npy", images)
    lines = snippets(folder)["model.caffemodel"].strip()
    code = (
        f"import numpy as np\nimages = np.load({str(tmp_path / 'images.npy')!r})\n{lines}\n"
        f"np.save({str(tmp_path / 'scores.npy')!r}, scores)"
    )
    python = shlex.split(os.environ["BRIDGE_PYCAFFE_PYTHON"])
    environment = {**os.environ, "GLOG_minloglevel": "2"}
    subprocess.run([*python, "-c", code], cwd=folder, check=True, capture_output=True, env=environment)
    onnx = ort.InferenceSession(str(folder / "model.onnx")).run(None, {"data": images})[0]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), onnx, rtol=1e-5, atol=1e-6)


def test_a_mean_image_and_a_crop_go_with_the_model(pictures: Path, tmp_path: Path) -> None:
    from bridge.caffe_files.proto import caffe_pb2
    from bridge.finetuning import read_images

    mean = np.arange(900, dtype=np.float32)
    blob = caffe_pb2.BlobProto(num=1, channels=1, height=30, width=30, data=mean.tolist())
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    made = run(
        config(tmp_path, data=str(pictures), heads=("fc8=3",), mean=str(tmp_path / "mean.binaryproto"), epochs=1)
    )
    folder = made.config.folder
    assert json.loads((folder / "preprocess.json").read_text())["mean"] == "mean.npy"
    picture = next((pictures / "bag").iterdir())
    pixels = read_images(folder, [picture])
    index = made.validation.names.index(str(picture)) if str(picture) in made.validation.names else -1
    assert pixels.shape == (1, 1, 28, 28)
    if index >= 0:
        own = made.preprocess.apply(made.validation.images(np.array([index])))
        np.testing.assert_array_equal(pixels, own)


# ---- predict --------------------------------------------------------------------------------


def test_predict_prints_the_top_k(made: Any, pictures: Path) -> None:
    paths = [next((pictures / name).iterdir()) for name in NAMES]
    done = call("predict", made.config.folder, *paths, "-k", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[place] for place in (0, 3, 6)] == list(map(str, paths))
    scores = [float(line.split()[0]) for line in lines if line.startswith("  ")]
    assert scores[0] >= scores[1]
    found = json.loads(call("predict", made.config.folder, *paths, "--json").stdout)
    assert [len(entry["classes"]) for entry in found] == [3, 3, 3]
    assert sum(entry["classes"][0]["class"] == name for entry, name in zip(found, NAMES, strict=True)) >= 2


def test_predict_on_what_is_not_there(made: Any, tmp_path: Path) -> None:
    from bridge.finetuning import classify

    with pytest.raises(MissingFileError, match="holds no finished run"):
        classify(tmp_path, ["a.png"], 1)
    with pytest.raises(MissingFileError, match=r"a\.png: does not exist"):
        classify(made.config.folder, ["a.png"], 1)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FormatError, match=r"text\.png: is no picture"):
        classify(made.config.folder, [str(tmp_path / "text.png")], 1)
    (tmp_path / "preprocess.json").write_text("{}")
    with pytest.raises(FormatError, match="not what finetune wrote"):
        classify(tmp_path, ["a.png"], 1)


# ---- the report -----------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_with_everything_on_it(made: Any) -> None:
    text = (made.config.folder / "report.html").read_text()
    page = _Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(sources) >= 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)
    found = made.evaluation
    assert f"{found.accuracy:.1%} of {len(found.true)} held-out images right" in page.text
    for title in ("Loss and accuracy", "Which class is taken for which", "Class by class", "filters", "How to use it"):
        assert title in page.text
    assert "coat & hat" in page.text
    cells = re.findall(r'--share: [\d.]+">(\d*)</td>', text)
    assert sum(int(cell or 0) for cell in cells) == len(found.true)


def test_names_from_folders_cannot_break_the_page(pictures: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    (copy / "bag").rename(copy / "<img src=x onerror=alert(1)>")
    made = run(config(tmp_path, data=str(copy), heads=("fc8=3",), epochs=1))
    page = _Page((made.config.folder / "report.html").read_text())
    assert all("onerror" not in attrs for _, attrs in page.tags)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_names_that_are_no_text_or_break_lines(pictures: Path, tmp_path: Path) -> None:
    """Every product is written, labels have a line per class, and the lines of code find the picture."""
    import os
    import shutil

    need("onnxruntime", "matplotlib")
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    os.rename(copy / "bag", os.fsencode(copy) + b"/a\xffb")
    os.rename(copy / "coat & hat", copy / "c\nd\u2028e")
    for folder in copy.iterdir():
        for place, picture in enumerate(sorted(folder.iterdir())):
            picture.rename(os.fsdecode(os.fsencode(folder) + b"/\xfe%d.png" % place))
    (copy / os.fsdecode(b"a\xffb") / os.fsdecode(b"\xfdbad.png")).write_bytes(b"")
    notes: list[str] = []
    made = run(config(tmp_path, data=str(copy), heads=("fc8=3",), epochs=1, max_bad=1, freeze=()), notes)
    folder = made.config.folder
    names = ["ankle boot", "a\\udcffb", "c\\nd\\u2028e"]
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == names
    assert "bad.png" in (folder / "report.html").read_text(encoding="utf-8")
    label, _ = lines_run(folder, "model.onnx")
    assert label.replace("\\\\", "\\") in names
    done = call("predict", folder, made.train.names[0])
    assert done.returncode == 0, done.stderr


@pytest.mark.browser
def test_the_report_fits_a_phone(made: Any, tmp_path: Path) -> None:
    """Nothing sticks out to the right of a window of 500 pixels, the narrowest that the browser makes."""
    script = (
        "<script>addEventListener('load', () => document.body.dataset.widths ="
        "[document.documentElement.scrollWidth, innerWidth].join(' '))</script>"
    )
    text = (made.config.folder / "report.html").read_text()
    text = re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", f"{script}</body>")
    (tmp_path / "page.html").write_text(text)
    line = [chromium() or "", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    done = subprocess.run([*line, f"file://{tmp_path}/page.html"], capture_output=True, text=True, check=True)
    wide, window = map(int, re.findall(r'data-widths="(\d+) (\d+)"', done.stdout)[0])
    assert wide <= window


def test_curves_of_a_run_without_validation(tmp_path: Path) -> None:
    need("matplotlib")
    made = run(config(tmp_path, validation_share=0.0))
    assert made.evaluation is None
    text = (made.config.folder / "report.html").read_text()
    assert "no validation" in text
    assert not (made.config.folder / "confusion.png").exists()


def test_many_classes_have_a_picture_in_place_of_a_table() -> None:
    need("matplotlib")
    from bridge.finetuning import pictures

    names = [f"class {number}" for number in range(80)]
    true = np.arange(800) % 80
    matrix = pictures.counts(true, np.roll(true, 1), 80)
    assert matrix.sum() == 800
    assert pictures.confusion(matrix, names).startswith(b"\x89PNG")
    assert pictures.smooth(np.array([1.0, 3.0, 5.0]), 2).tolist() == [1, 2, 4]


def test_long_names_stay_apart_in_the_confusion_matrix() -> None:
    from bridge.finetuning.pictures import _short, _ticks

    names = [f"a long name of a class of clothing, number {number}" for number in range(30)]
    columns, rows = _ticks(names)
    assert columns == [str(number) for number in range(1, 31)]
    assert len(set(rows)) == 30
    assert all(row.endswith(f" {column}") for row, column in zip(rows, columns, strict=True))
    assert len({_short(name) for name in names}) == 30
    assert {len(_short(name)) for name in names} == {18}
    assert _ticks(["bag", "coat"]) == (["bag", "coat"], ["bag", "coat"])


def test_pictures_take_any_name_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    """Scripts that no font has here, and what would be mathematics to matplotlib."""
    need("matplotlib")
    import warnings

    from bridge.finetuning import pictures

    warnings.simplefilter("always")
    names = ["\u5916\u5957 \u978b", "\U00012000 \u1b05", "$\\frac{$ $x_{"]
    assert pictures.confusion(np.eye(3, dtype=int), names).startswith(b"\x89PNG")
    assert pictures.mistakes(np.zeros((3, 1, 4, 4), np.uint8), names, names).startswith(b"\x89PNG")
    assert not recwarn.list


def test_the_progress_bar_says_loss_accuracy_speed_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    from bridge.cli.progress import Progress

    record = {"epoch": 0, "loss": 1.25, "accuracy": 0.5, "seconds": 0.01, "images": 32, "iterations": 2, "epochs": 1}
    first = {"iteration": 0, **record, "epoch_ends": False}
    last = {"iteration": 1, **record, "validation_loss": 1.0, "validation_accuracy": 0.75, "epoch_ends": True}
    with Progress(hidden=False) as progress:
        progress.step(first)
        progress.step({**last, "best": True})
    said = capsys.readouterr().err
    line = "epoch 1/1  loss 1.2500  50.0% right  held out: loss 1.0000  75.0% right  0.0 s  best so far"
    for words in (line, "2/2", "images/s"):
        assert words in said
    with Progress(hidden=True) as progress:
        progress.step(first)
        progress.step({**last, "best": True})
    assert capsys.readouterr().err == f"{line}\n"


def test_quiet_is_quiet(tmp_path: Path) -> None:
    line = [
        "finetune",
        *MODEL,
        "--data",
        FASHION / "fashion_mini.npz",
        "--epochs",
        "1",
        "--train",
        "fc*",
        "--scale",
        "0.004",
    ]
    done = call(*line, "-o", tmp_path / "quiet", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    loud = call(*line, "-o", tmp_path / "loud")
    assert loud.stderr.startswith("reading ")
    assert "note: " in loud.stderr
    assert bridge.load(tmp_path / "loud" / "deploy.prototxt", tmp_path / "loud" / "model.caffemodel")


# ---- several outputs, and none of classes ---------------------------------------------------


def with_a_branch(tmp_path: Path) -> tuple[str, str]:
    """The model with a regression beside its classes, and before them."""
    text = Path(MODEL[0]).read_text()
    branch = (
        'layer { name: "box" type: "InnerProduct" bottom: "fc6" top: "box" inner_product_param { num_output: 4 } }\n'
    )
    place = text.index('layer { name: "fc8"')
    (tmp_path / "branched.prototxt").write_text(text[:place] + branch + text[place:])
    return str(tmp_path / "branched.prototxt"), MODEL[1]


def test_scores_are_taken_from_their_own_output_where_there_are_several(pictures: Path, tmp_path: Path) -> None:
    need("onnxruntime")
    from bridge.finetuning import classify

    made = run(config(tmp_path, files=with_a_branch(tmp_path), data=str(pictures), heads=("fc8=3",), epochs=1))
    folder = made.config.folder
    deploy = bridge.load(folder / "deploy.prototxt", folder / "model.caffemodel")
    assert len(deploy.outputs) == 2
    assert deploy.outputs[0] == "box"
    assert json.loads((folder / "preprocess.json").read_text())["output"] == "prob"
    (ranked,) = classify(folder, [made.train.names[0]], 5)
    assert {entry["class"] for entry in ranked} == set(NAMES)
    assert sum(entry["score"] for entry in ranked) == pytest.approx(1, abs=1e-5)
    for name in ("model.onnx", "model.npz"):
        label, scores = lines_run(folder, name)
        assert label == ranked[0]["class"]
        np.testing.assert_allclose(sorted(scores), sorted(entry["score"] for entry in ranked), rtol=1e-4, atol=1e-6)
    assert '["prob"]' in snippets(folder)["model.caffemodel"].replace("'", '"')


def test_a_regression_prints_numbers_and_has_no_labels(pictures: Path, tmp_path: Path) -> None:
    need("onnxruntime")
    text = Path(MODEL[0]).read_text()
    kept = text[: text.rindex("layer")]
    assert "Softmax" in text[len(kept) :]
    (tmp_path / "train.prototxt").write_text(
        kept
        + 'layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 10 dim: 1 } } }\n'
        + 'layer { name: "loss" type: "EuclideanLoss" bottom: "fc8" bottom: "y" top: "loss" }\n'
    )
    np.savez(tmp_path / "r.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.linspace(0, 1, 40))
    files = str(tmp_path / "train.prototxt"), MODEL[1]
    made = run(config(tmp_path, files=files, data=str(tmp_path / "r.npz"), heads=("fc8=1",), epochs=1))
    folder = made.config.folder
    assert "labels.txt" not in (folder / "use.txt").read_text()
    assert "labels.txt" not in (folder / "report.html").read_text()
    picture = next((pictures / "bag").iterdir())
    done = call("predict", folder, picture)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == str(picture)
    (found,) = json.loads(call("predict", folder, picture, "--json").stdout)
    assert len(found["values"]) == 1
    assert float(second) == pytest.approx(found["values"][0], rel=1e-5)
