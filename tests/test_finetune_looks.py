"""Looks before a run: pictures as the net sees them, and the search for a learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import need
from tests.finetuning import MODEL, call, config, run, small_npz, small_pictures, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer", "matplotlib", "PIL")


def test_a_sheet_of_pictures_and_then_a_run_in_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    small_pictures(tmp_path / "pictures")
    line = ["finetune", *MODEL, "--data", tmp_path / "pictures", "--head", "fc8=3", "--train-head", "--workers", 0]
    line += ["--mean", 70, "--scale", 0.01, "-o", tmp_path / "run"]
    done = call(*line, "--show-data")
    assert done.returncode == 0, done.stderr
    assert "24 of 66 images, 28 x 28: values from -0.7 to 1.8, mean 0.1" in done.stdout
    assert (tmp_path / "run" / "data.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data.png"]
    assert call(*line, "--epochs", 10).returncode == 0


def test_the_search_for_a_rate_finds_one_that_trains(tmp_path: Path) -> None:
    from bridge.finetuning.looks import find_rate

    settings = config(tmp_path, freeze=(), train_head=True, epochs=6)
    found = find_rate(settings)
    again = find_rate(settings)
    assert found == again
    assert found.suggestion is not None
    assert 1e-5 < found.suggestion <= 1
    assert found.losses[-1] > min(found.losses) * 1.5
    stored = json.loads((tmp_path / "run" / "find_lr.json").read_text())
    assert stored["suggestion"] == found.suggestion
    assert (tmp_path / "run" / "find_lr.png").exists()
    from bridge.finetuning import Recipe

    made = trained(
        config(tmp_path, freeze=(), train_head=True, epochs=6, recipe=Recipe(base_lr=found.suggestion, momentum=0.9))
    )
    assert made.at.state.best_accuracy is not None
    assert made.at.state.best_accuracy > 0.5


def test_misclassified_pictures_have_their_files_and_classes_precision(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    small_pictures(tmp_path / "pictures")
    made = run(
        config(tmp_path, data=str(tmp_path / "pictures"), heads=("fc8=3",), epochs=1, workers=0, validation_share=0.5)
    )
    wrong = np.flatnonzero(made.evaluation.true != made.evaluation.predicted)
    assert len(wrong)
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"<small>{Path(made.validation.names[wrong[0]]).name}</small>" in page
    assert "precision" in page
    small_npz(tmp_path / "other.npz")
