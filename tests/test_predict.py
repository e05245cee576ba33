"""``bridge predict``: folders, tables, and pictures that cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bridge.errors import FormatError
from tests.conftest import need
from tests.finetuning import NAMES, call, config, run, small_pictures


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on small pictures; the pictures are in the folder ``pictures`` beside it."""
    need("chainer", "onnxruntime", "PIL")
    root = tmp_path_factory.mktemp("predict")
    (root / "pictures").mkdir()
    small_pictures(root / "pictures")
    run(config(root, data=str(root / "pictures"), heads=("fc8=3",), freeze=(), train_head=True, epochs=20, workers=0))
    return root


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_table_and_a_broken_picture_is_named_and_counted(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in NAMES:
        source = sorted((finished / "pictures" / name).glob("*.png"))[0]
        (tmp_path / "more" / f"{name}.png").write_bytes(source.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture, and not taken for one")
    done = call("predict", finished / "run", tmp_path, "--csv", tmp_path / "out.csv", "-k", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"{tmp_path / 'broken.jpg'}: cannot be read" in done.stderr
    assert "1 of 4 pictures cannot be read" in done.stderr
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["file", "class", "score", "class_2", "score_2", "error"]
    assert [Path(row["file"]).name for row in rows] == ["broken.jpg", *(f"{name}.png" for name in NAMES)]
    assert rows[0]["class"] == ""
    assert rows[0]["error"] != ""
    assert sum(row["class"] == name for row, name in zip(rows[1:], NAMES, strict=True)) >= 2
    data = json.loads(call("predict", finished / "run", tmp_path, "--json").stdout)
    assert "error" in data[0]
    assert [entry["classes"][0]["class"] for entry in data[1:]] == [row["class"] for row in rows[1:]]


def test_a_picture_has_the_same_numbers_in_any_company(finished: Path) -> None:
    from bridge.finetuning.predict import predictions

    folder = finished / "pictures"
    many = list(predictions(finished / "run", [folder], 3, workers=2))
    assert len(many) == 72
    alone = [next(predictions(finished / "run", [made.image], 3, workers=0)) for made in many[::10]]
    assert alone == many[::10]


def test_no_readable_picture_is_an_error(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    done = call("predict", finished / "run", tmp_path / "a.png", tmp_path / "b.png", "--csv", tmp_path / "out.csv")
    assert done.returncode == 2
    assert "a.png: is no picture" in done.stderr
    assert not (tmp_path / "out.csv").exists()
    from bridge.finetuning import classify

    with pytest.raises(FormatError, match="has no pictures"):
        classify(finished / "run", [_empty(tmp_path)], 1)


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"
