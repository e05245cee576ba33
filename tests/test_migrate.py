"""A folder of models at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import bridge
from bridge.cli import main
from bridge.errors import MissingFileError
from bridge.exporting.migrate import ModelFiles, find_pairs, migrate_folder
from tests.conftest import FASHION, FIXTURES, need
from tests.nets import make

FIELD = FIXTURES / "field"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models in two folders, one of them twice told, a net that is refused, and files that are no models."""
    root = tmp_path / "models"
    for name in ("deeplab_hole", "unknown_bottom"):
        shutil.copytree(FIELD / name, root / name)
    (root / "fashion" / "weights").mkdir(parents=True)
    for name in ("deploy.prototxt", "train.prototxt"):
        shutil.copy(FASHION / name, root / "fashion")
    shutil.copy(FASHION / "fashion_alexnet.caffemodel", root / "fashion" / "weights")
    shutil.copy(FIELD / "bad_prototxt" / "page.prototxt", root)
    (root / "broken.caffemodel").write_bytes(b"\x01\x02")
    return root


def test_weights_are_paired_with_the_prototxt_that_fits_best(models: Path) -> None:
    assert find_pairs(models) == [
        ModelFiles("broken.caffemodel"),
        ModelFiles("deeplab_hole/weights.caffemodel", "deeplab_hole/deploy.prototxt", 1.0),
        ModelFiles("fashion/weights/fashion_alexnet.caffemodel", "fashion/deploy.prototxt", 1.0),
        ModelFiles("unknown_bottom/weights.caffemodel", "unknown_bottom/deploy.prototxt", 1.0),
    ]


def _line(folder: Path, name: str, text: str, *, weights: bool = False) -> None:
    """A prototxt of a net, and perhaps a file of weights for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.prototxt").write_text(text)
    if weights:
        bridge.save(make(text), folder / f"{name}.caffemodel")


def _net(outputs: int, stride: int = 1, more: str = "") -> str:
    conv = f"convolution_param {{ num_output: {outputs} kernel_size: 2 stride: {stride} }}"
    return (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }\n'
        f'layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" {conv} }}\n{more}'
    )


def test_a_prototxt_of_other_shapes_is_passed_over(tmp_path: Path) -> None:
    """Its name is the better one, and its layers have the same names."""
    _line(tmp_path, "a", _net(3), weights=True)
    _line(tmp_path, "b", _net(3))
    (tmp_path / "a.prototxt").write_text(_net(4))
    assert find_pairs(tmp_path) == [ModelFiles("a.caffemodel", "b.prototxt", 1.0)]


def test_a_prototxt_of_a_folder_beside_has_to_agree_with_the_stored_net(tmp_path: Path) -> None:
    _line(tmp_path / "weights", "a", _net(3), weights=True)
    (tmp_path / "weights" / "a.prototxt").unlink()
    _line(tmp_path / "nets", "a", _net(3, stride=2))
    assert find_pairs(tmp_path) == [ModelFiles("weights/a.caffemodel")]
    relu = 'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }'
    _line(tmp_path / "nets", "b", _net(3, more=relu))
    assert find_pairs(tmp_path) == [ModelFiles("weights/a.caffemodel", "nets/b.prototxt", 1.0)]


def test_without_a_prototxt_that_runs_the_one_that_names_most_is_reported(tmp_path: Path) -> None:
    head = 'layer { name: "%s" type: "InnerProduct" bottom: "conv" top: "%s" inner_product_param { num_output: 2 } }'
    unknown = 'layer { name: "odd" type: "Odd" bottom: "fc" top: "odd" }'
    _line(tmp_path, "a", _net(3, more=head % ("fc", "fc")), weights=True)
    (tmp_path / "a.prototxt").write_text(_net(3, more=head % ("other", "fc") + unknown))
    _line(tmp_path, "b", _net(3, more=head % ("fc", "fc") + unknown))
    assert find_pairs(tmp_path) == [ModelFiles("a.caffemodel", "b.prototxt", 1.0)]


def test_a_shape_that_the_prototxt_lacks_is_the_stored_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.exporting import migrate

    _line(tmp_path, "a", _net(3), weights=True)
    text = _net(3).replace("input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } }", "")
    (tmp_path / "a.prototxt").write_text(text)
    (pair,) = find_pairs(tmp_path)
    assert (pair.definition, pair.inputs) == ("a.prototxt", ("data=1,2,5,5",))
    asked: list[tuple[str, ...]] = []

    def command(*arguments: str) -> tuple[int, tuple[str, ...]]:
        asked.append(arguments)
        if arguments[0] == "export":
            Path(arguments[-1]).touch()
        return 0, ()

    monkeypatch.setattr(migrate, "_command", command)
    for _ in range(2):  # the second time from the record
        assert migrate_folder(tmp_path, tmp_path / "out")[0].proven
    assert [arguments[0] for arguments in asked] == ["export", "verify"]
    assert all("--input=data=1,2,5,5" in arguments for arguments in asked)


def test_a_folder_that_is_none() -> None:
    with pytest.raises(MissingFileError, match="is not a folder"):
        find_pairs("nowhere")


@pytest.mark.parametrize("more", [[], ["--list"]])
def test_a_folder_without_weights(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit) as left:
        main(["migrate", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *more])
    assert left.value.code == 2
    assert "in: no weights are below it, expected files that end in .caffemodel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_each_model_is_converted_and_proven_or_it_is_said_why_not(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need("onnxruntime", "chainer")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        main(["migrate", str(models), "-o", str(out), "--jobs", "2"])
    assert left.value.code == 1
    assert "4 models, 2 converted and proven" in capfd.readouterr().out
    assert (out / "deeplab_hole" / "weights.onnx").exists()
    assert not (out / "unknown_bottom" / "weights.onnx").exists()
    record = json.loads((out / "unknown_bottom" / "weights.json").read_text())
    assert (record["converted"], record["proven"]) == (False, False)
    page = (out / "index.html").read_text()
    assert "reads blob" in page
    assert "2 of 4 converted and proven" in page
    assert '<b class="different">not converted</b>' in page
    assert "fashion_alexnet" in page
    before = (out / "deeplab_hole" / "weights.onnx").stat().st_mtime_ns
    assert [outcome.proven for outcome in migrate_folder(models, out)] == [False, True, True, False]
    assert (out / "deeplab_hole" / "weights.onnx").stat().st_mtime_ns == before, "it was converted again"


def test_what_was_not_proven_is_tried_again_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may have been installed since."""
    from bridge.exporting import migrate

    models, out, asked = tmp_path / "models", tmp_path / "out", []
    models.mkdir()
    for name in ("deploy.prototxt", "fashion_alexnet.caffemodel"):
        shutil.copy(FASHION / name, models / name)
    answers = {"export": (0, ()), "verify": (2, ("bridge: nothing was compared", "hint: install another"))}

    def command(*arguments: str) -> tuple[int, tuple[str, ...]]:
        asked.append(arguments[0])
        if arguments[0] == "export":
            Path(arguments[-1]).touch()
        return answers[arguments[0]]

    monkeypatch.setattr(migrate, "_command", command)
    said: list[str] = []
    migrate_folder(models, out, progress=said.append)
    assert said == ["fashion_alexnet.caffemodel: converted, not proven (nothing was compared)"]
    answers["verify"] = (0, ())
    assert migrate_folder(models, out)[0].proven
    assert migrate_folder(models, out)[0].proven
    assert asked == ["export", "verify"] * 2
