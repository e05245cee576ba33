"""The runner: Caffe's own recipes, resuming, caching, faults, products."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import prototxt
from bridge.errors import BridgeError, FormatError, ModelError, UsageError
from tests.conftest import FASHION, ROOT, TRAINING, need

RECIPES = sorted(path.parent.name for path in TRAINING.glob("*/solver.prototxt"))
MODEL = (str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel"))


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with small grey pictures, 3 classes of 24."""
    need("PIL")
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    with np.load(FASHION / "fashion_mini.npz") as data:
        x, y = data["x_train"], data["y_train"]
    for label, name in enumerate(("bag", "boot", "coat")):
        (root / name).mkdir()
        for index in np.flatnonzero(y == label)[:24]:
            Image.fromarray(x[index]).save(root / name / f"{index}.png")
    return root


def small_npz(path: Path, count: int = 160, classes: int = 4) -> Path:
    """Images of the first classes of Fashion-MNIST."""
    with np.load(FASHION / "fashion_mini.npz") as data:
        chosen = np.flatnonzero(data["y_train"] < classes)[:count]
        np.savez(path, x=data["x_train"][chosen], y=data["y_train"][chosen].astype(np.int64))
    return path


def config(tmp_path: Path, **changes: Any) -> Any:
    from bridge.finetune import Config, Recipe

    settings: dict[str, Any] = {
        "files": MODEL,
        "data": str(small_npz(tmp_path / "data.npz")),
        "output": str(tmp_path / "run"),
        "heads": ("fc8=4",),
        "freeze": ("conv*",),
        "epochs": 2,
        "scale": 1 / 256,
        "recipe": Recipe(momentum=0.9, weight_decay=5e-4, seed=7),
        "validation_share": 0.2,
    }
    return Config(**{**settings, **changes})


def run(settings: Any) -> Any:
    from bridge.finetune import finetune

    return finetune(settings)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "model.npz") as archive:
        return {name: archive[name] for name in archive.files}


# ---- Caffe's recipes ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_solver_prototxt_means_what_it_means_in_caffe(name: str, tmp_path: Path) -> None:
    recipe = TRAINING / name
    command = [
        sys.executable, "-m", "bridge", "finetune", recipe / "train.prototxt", recipe / "start.caffemodel",
        "--solver", recipe / "solver.prototxt", "--data", TRAINING / "batches.npz", "--scale", "0.00390625",
        "-o", tmp_path / "run",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with np.load(recipe / "loss.npz") as archive:
        expected = archive["loss"]
    log = log_of(tmp_path / "run")
    assert [record["iteration"] for record in log] == list(range(len(expected)))
    np.testing.assert_allclose([record["loss"] for record in log], expected, rtol=0, atol=1e-5)
    end, made = bridge.load(recipe / "end.caffemodel"), bridge.load(tmp_path / "run" / "model.caffemodel")
    for layer in made:
        for role, values in layer.blobs.items():
            np.testing.assert_allclose(values, end[layer.name].blobs[role], rtol=1e-5, atol=1e-5, err_msg=layer.name)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ('lr_policy: "fixed"', [1, 1, 1, 1]),
        ('lr_policy: "step" gamma: 0.5 stepsize: 2', [1, 1, 0.5, 0.5]),
        ('lr_policy: "exp" gamma: 0.5', [1, 0.5, 0.25, 0.125]),
        ('lr_policy: "inv" gamma: 1 power: 2', [1, 1 / 4, 1 / 9, 1 / 16]),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 1 stepvalue: 3', [1, 0.1, 0.1, 0.01]),
        ('lr_policy: "poly" power: 2 max_iter: 4', [1, 9 / 16, 1 / 4, 1 / 16]),
        ('lr_policy: "sigmoid" gamma: -1 stepsize: 1', [1 / (1 + np.exp(-(1 - i))) for i in range(4)]),
    ],
)
def test_learning_rate_policies(text: str, rates: list[float]) -> None:
    from bridge.finetune import read_solver

    recipe = read_solver(prototxt.parse(f"base_lr: 1 {text}"))
    np.testing.assert_allclose([recipe.rate(i) for i in range(4)], rates, rtol=1e-6)


def test_an_unknown_solver_parameter_is_an_error() -> None:
    from bridge.finetune import read_solver

    with pytest.raises(FormatError, match="momentun"):
        read_solver(prototxt.parse("base_lr: 1 momentun: 0.9"))


CHAINERS = ["AMSGrad", "AdaBound", "AdamW", "MomentumSGD", "NesterovAG", "RMSprop", "SMORMS3"]


@pytest.mark.parametrize("name", CHAINERS)
def test_chainers_optimizers_train_by_name(name: str, tmp_path: Path) -> None:
    from bridge.finetune import Recipe

    run(config(tmp_path, epochs=3, recipe=Recipe(type=name, base_lr=1e-3, momentum=0.9, weight_decay=1e-4, seed=3)))
    losses = [record["loss"] for record in log_of(tmp_path / "run")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


# ---- caching, freezing, resuming ------------------------------------------------------------


def test_the_loss_curve_is_the_same_with_and_without_a_cache(tmp_path: Path) -> None:
    for name, cache in (("with", True), ("without", False)):
        run(config(tmp_path, output=str(tmp_path / name), cache=cache, trunk_engine="chainer"))
    assert log_of(tmp_path / "with") == log_of(tmp_path / "without")


def test_a_cache_on_disk_is_reused_and_changes_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    from bridge.finetune import finetune

    shared = {"cache_memory": 0, "cache_dir": str(tmp_path / "cache"), "trunk_engine": "chainer"}
    run(config(tmp_path, output=str(tmp_path / "memory"), trunk_engine="chainer"))
    run(config(tmp_path, output=str(tmp_path / "first"), **shared))
    finetune(config(tmp_path, output=str(tmp_path / "second"), **shared), on_note=notes.append)
    assert any("reused" in note for note in notes)
    assert log_of(tmp_path / "memory") == log_of(tmp_path / "first") == log_of(tmp_path / "second")


def test_frozen_layers_keep_their_bits_and_others_move(tmp_path: Path) -> None:
    made = run(config(tmp_path))
    before = bridge.load(*MODEL)
    after = bridge.load(tmp_path / "run" / "model.caffemodel")
    for name in ("conv1", "conv2", "conv3"):
        assert all(before[name].blobs[r].tobytes() == after[name].blobs[r].tobytes() for r in before[name].blobs)
    assert before["fc6"].weight.tobytes() != after["fc6"].weight.tobytes()
    assert after["fc8"].weight.shape == (4, 64)
    assert made.loop.cut is not None


def test_layers_thaw_at_their_epoch(tmp_path: Path) -> None:
    run(config(tmp_path, unfreeze_at=1, output=str(tmp_path / "thawed")))
    run(config(tmp_path, output=str(tmp_path / "frozen")))
    thawed, frozen = log_of(tmp_path / "thawed"), log_of(tmp_path / "frozen")
    first = [record for record in frozen if record["epoch"] == 0]
    assert thawed[: len(first)] == first
    before, after = bridge.load(*MODEL), bridge.load(tmp_path / "thawed" / "model.caffemodel")
    assert before["conv1"].weight.tobytes() != after["conv1"].weight.tobytes()


def test_a_run_that_was_killed_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Ten kills at random moments, in as many runs as it takes, each of which is resumed to its end."""
    small_npz(tmp_path / "data.npz", 320)
    base = [
        sys.executable, "-m", "bridge", "finetune", *MODEL, "--data", str(tmp_path / "data.npz"), "--head", "fc8=4",
        "--freeze", "conv[12]", "--epochs", "40", "--scale", "0.00390625", "--snapshot-every", "3", "-q",
    ]  # fmt: skip
    whole = tmp_path / "whole"
    start = time.monotonic()
    subprocess.run([*base, "-o", str(whole)], check=True, cwd=ROOT, capture_output=True)
    seconds = time.monotonic() - start
    rng = random.Random(5)
    kills = runs = 0
    while kills < 10:
        folder = tmp_path / f"killed{runs}"
        runs += 1
        kills += resume_until_done([*base, "-o", str(folder), "--resume"], seconds, rng, 10 - kills)
        mine, theirs = parameters(whole), parameters(folder)
        assert mine.keys() == theirs.keys()
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
        assert log_of(whole) == log_of(folder)
        assert runs < 40, "the runs end before they can be killed"


def resume_until_done(command: list[str], seconds: float, rng: random.Random, most: int) -> int:
    """Start a run again and again, killing it at a random moment up to ``most`` times; returns how often."""
    kills = 0
    while True:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=seconds * rng.uniform(0.3, 0.95) if kills < most else None)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, errors
        return kills


# ---- data -----------------------------------------------------------------------------------


def test_a_folder_per_class_and_the_products(pictures: Path, tmp_path: Path) -> None:
    need("onnxruntime", "matplotlib")
    run(config(tmp_path, data=str(pictures), heads=("fc8=3",), epochs=3))
    folder = tmp_path / "run"
    assert (folder / "labels.txt").read_text().split() == ["bag", "boot", "coat"]
    for name in ("model.onnx", "model.caffemodel", "deploy.prototxt", "model.npz", "preprocess.json", "curves.png",
                 "confusion.png", "filters.png", "report.html", "log.jsonl"):  # fmt: skip
        assert (folder / name).stat().st_size > 0
    picture = next((pictures / "boot").iterdir())
    command = [sys.executable, "-m", "bridge", "predict", str(folder), str(picture), "-k", "2"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()
    assert len(said) == 3
    assert said[1].split()[1] in ("bag", "boot", "coat")


def test_the_products_agree_with_each_other(tmp_path: Path) -> None:
    need("onnxruntime")
    import onnxruntime as ort

    from bridge import engines

    run(config(tmp_path))
    folder = tmp_path / "run"
    x = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    onnx_scores = ort.InferenceSession(str(folder / "model.onnx")).run(None, {"data": x})[0]
    net = bridge.load(folder / "deploy.prototxt", folder / "model.caffemodel")
    np.testing.assert_allclose(engines.make("chainer", net).outputs({"data": x})["prob"], onnx_scores, 1e-4, 1e-6)
    chain = bridge.build_chain(net)
    from bridge.chain.functions import chainer

    chainer.serializers.load_npz(folder / "model.npz", chain)


def test_a_list_file(pictures: Path, tmp_path: Path) -> None:
    lines = [f"{path} {label}\n" for label, name in enumerate(("bag", "boot")) for path in (pictures / name).iterdir()]
    (tmp_path / "list.txt").write_text("".join(lines))
    made = run(config(tmp_path, data=str(tmp_path / "list.txt"), heads=("fc8=2",), epochs=1))
    assert len(made.train) + len(made.validation) == 48


def test_broken_pictures_are_named_and_counted(pictures: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    (copy / "coat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(FormatError, match=r"(?s)broken\.png.*--max-bad 1"):
        run(config(tmp_path, data=str(copy), heads=("fc8=3",)))
    made = run(config(tmp_path, data=str(copy), heads=("fc8=3",), max_bad=1, epochs=1))
    assert any("broken.png" in note for note in made.notes)


def test_augmented_images_are_cached_in_k_draws(tmp_path: Path) -> None:
    made = run(config(tmp_path, mirror=True, augment_cache=3))
    assert made.loop.train.cache is not None
    assert made.loop.train.draws == 3
    off = run(config(tmp_path, mirror=True, output=str(tmp_path / "off")))
    assert off.loop.train.cache is None


# ---- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"heads": ("fc8=2",)}, UsageError, "labels run from 0 to 3, the net tells 2"),
        ({"heads": ("fc9=4",)}, BridgeError, "no layer 'fc9'"),
        ({"freeze": ("cov*",)}, UsageError, "cov"),
        ({"freeze": ("*",)}, UsageError, "nothing to train"),
        ({"data": "/nowhere/at/all"}, BridgeError, "does not exist"),
    ],
)
def test_what_cannot_be_done_says_so_in_one_line(
    changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        run(config(tmp_path, **changes))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_snapshot(tmp_path: Path) -> None:
    from bridge.finetune import Recipe

    wild = Recipe(base_lr=1e18, momentum=0.9)
    with pytest.raises(ModelError, match="the loss is"), np.errstate(all="ignore"):
        run(config(tmp_path, recipe=wild, snapshot_every=1))
    assert (tmp_path / "run" / "snapshot.npz").exists()


def test_a_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    run(config(tmp_path, epochs=1))
    with pytest.raises(UsageError, match="--resume"):
        run(config(tmp_path, epochs=1))
    with pytest.raises(UsageError, match="was started with epochs"):
        run(config(tmp_path, epochs=2, resume=True))
