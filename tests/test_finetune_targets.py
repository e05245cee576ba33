"""Several labels and targets for each image, tables of them, and weights of classes."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import FormatError, UsageError
from tests.conftest import FASHION, need
from tests.finetuning import MODEL, call, config, loaded, log_of, run, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer", "PIL")


def net_with(tmp_path: Path, loss: str, outputs: int, data: str = "") -> tuple[str, str]:
    """The small AlexNet with that loss over so many outputs; its weights."""
    body = Path(MODEL[0]).read_text().partition('layer { name: "fc8"')[0]
    if data:
        body = data + body[body.index('layer { name: "conv1"') :]
    label = (
        f'layer {{ name: "label" type: "Input" top: "label" input_param {{ shape {{ dim: 10 dim: {outputs} }} }} }}\n'
    )
    body += (
        f'layer {{ name: "out" type: "InnerProduct" bottom: "fc6" top: "out" '
        f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }} }}\n'
        f'{"" if data else label}layer {{ name: "loss" type: "{loss}" bottom: "out" bottom: "label" top: "loss" }}\n'
    )
    (tmp_path / "train.prototxt").write_text(body)
    return str(tmp_path / "train.prototxt"), MODEL[1]


def table(tmp_path: Path, columns: int, make: Any) -> Path:
    """Pictures, and a .csv with a row for each: ``make`` gives the cells for the pixels."""
    from PIL import Image

    with np.load(FASHION / "fashion_mini.npz") as archive:
        x = archive["x_train"][:96]
    (tmp_path / "pictures").mkdir()
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", *(f"t{k}" for k in range(columns))])
        for number, image in enumerate(x):
            size = (28 + number % 3 * 10, 28 + number % 2 * 5)  # mixed sizes
            Image.fromarray(image).resize(size).save(tmp_path / "pictures" / f"{number}.png")
            rows.writerow([f"pictures/{number}.png", *make(image.astype(float) / 255)])
    return tmp_path / "labels.csv"


def halves(image: np.ndarray) -> list[int]:
    """Is the upper half bright? The lower one? The left one?"""
    return [int(part.mean() > 0.3) for part in (image[:14], image[14:], image[:, :14])]


def test_yes_or_no_questions_from_a_table(tmp_path: Path) -> None:
    data = table(tmp_path, 3, halves)
    files = net_with(tmp_path, "SigmoidCrossEntropyLoss", 3)
    options = ["--scale", "0.004", "--freeze", "conv*", "--epochs", "15", "--workers", "0", "-o", tmp_path / "run"]
    done = call("finetune", *files, "--data", data, *options, "--lr", "0.05")
    assert done.returncode == 0, done.stderr
    assert "images' 3 labels each right" in done.stdout
    log = log_of(tmp_path / "run")
    assert max(record.get("validation_accuracy", 0) for record in log) > 0.8
    assert (tmp_path / "run" / "labels.txt").read_text().split() == ["t0", "t1", "t2"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "precision" in page
    assert "Which class is taken for which" not in page


def test_targets_of_a_regression_from_a_table_through_a_data_layer(tmp_path: Path) -> None:
    """A data layer does not say how many targets there are; the loss does."""
    data = table(tmp_path, 4, lambda image: [f"{part.mean():.4f}" for part in np.split(image, 4)])
    layer = (
        'layer { name: "h5" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "x" batch_size: 8 } }\n'
    )
    channels = {"files": net_with(tmp_path, "EuclideanLoss", 4, layer), "crop": (28, 28), "resize": (28, 28)}
    made = run(config(tmp_path, data=str(data), heads=(), freeze=("conv[12]",), epochs=8, workers=0, **channels))
    assert made.train.y.shape == (77, 4)
    assert made.plan.net.inputs["label"][1:] == (4,)
    held = [record["validation_loss"] for record in log_of(tmp_path / "run") if "validation_loss" in record]
    assert min(held) < held[0]
    assert re.search(r"mean squared error \S+ on 19 held-out images; the mean of .* has \S+", made.verdict.text)
    assert made.evaluation.estimated.shape == (19, 4)


def test_weights_of_an_auxiliary_head_are_kept(tmp_path: Path) -> None:
    """The deployed net has no auxiliary head; another training can start from its weights."""
    files = net_with(tmp_path, "SoftmaxWithLoss", 4)
    text = Path(files[0]).read_text().replace("dim: 10 dim: 4", "dim: 10")
    Path(files[0]).write_text(
        text
        + 'layer { name: "aux" type: "InnerProduct" bottom: "pool2" top: "aux" inner_product_param { num_output: 4 '
        'weight_filler { type: "xavier" } } }\n'
        'layer { name: "aux_loss" type: "SoftmaxWithLoss" bottom: "aux" bottom: "label" top: "aux_loss" '
        "loss_weight: 0.3 }\n"
    )
    notes: list[str] = []
    made = run(config(tmp_path, files=files, heads=(), freeze=("conv*",), epochs=1), notes)
    found = bridge.load(made.files["trained.caffemodel"])
    assert "aux" not in bridge.load(made.files["model.caffemodel"]).layer_names
    assert np.array_equal(found["aux"].weight, made.chain.child("aux").W.array)
    assert [note for note in made.notes if note.startswith("trained.caffemodel also holds")] != []


@pytest.mark.parametrize(
    ("share", "images", "learned", "words"),
    [(0.0, 40, True, ""), (1.0, 40, False, "no better than guessing: "), (0.0, 2, None, "too few images to tell")],
)
@pytest.mark.parametrize("answers", [False, True])
def test_labels_are_held_against_the_usual_answers_and_numbers_against_their_mean(
    share: float, images: int, learned: bool | None, words: str, answers: bool, tmp_path: Path
) -> None:
    """What is estimated lies that share of the way from the truth to the guess."""
    import dataclasses

    from bridge.finetuning.evaluation import Evaluation
    from bridge.finetuning.verdict import judge

    rng = np.random.default_rng(1)
    y = (rng.random((images, 3)) < 0.4 if answers else rng.random((images, 3))).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=rng.integers(0, 256, (images, 1, 28, 28), np.uint8), y=y)
    files = net_with(tmp_path, "SigmoidCrossEntropyLoss" if answers else "EuclideanLoss", 3)
    data = {"data": str(tmp_path / "own.npz"), "validation": str(tmp_path / "own.npz"), "heads": ()}
    loop = trained(config(tmp_path, files=files, freeze=("conv*",), epochs=1, **data))
    outcome = loop.run()
    true = y.astype(int)
    if answers:
        usual = np.broadcast_to(y.mean(0) > 0.5, y.shape).astype(int)
        found = Evaluation(1.0, 0.5, true, usual if share else true)
    else:
        found = Evaluation(1.0, None, true, true[:0], y + np.float32(share) * (y.mean(0) - y))
    verdict = judge(loop.plan, dataclasses.replace(outcome, evaluation=found))
    assert verdict.learned is learned
    assert verdict.text.startswith(words)
    assert bool(verdict.causes) == (learned is False)


def test_a_wrong_number_of_labels_is_told(tmp_path: Path) -> None:
    data = table(tmp_path, 3, halves)
    with pytest.raises(UsageError, match="each image has 3 labels, the net takes 4 labels"):
        trained(config(tmp_path, files=net_with(tmp_path, "EuclideanLoss", 4), data=str(data), heads=(), workers=0))
    with pytest.raises(UsageError, match="each image has 3 labels, the net takes 1 label"):
        trained(config(tmp_path, data=str(data), workers=0))


def test_tables_of_classes_and_faults_in_them(tmp_path: Path) -> None:
    data = table(tmp_path, 1, lambda image: ["bright" if image.mean() > 0.3 else "dark"])
    found = loaded(str(data))
    assert found.classes == ("bright", "dark")
    assert found.y.dtype.kind == "i"
    lines = data.read_text().splitlines()
    for text, message in (
        ("\n".join([*lines[:3], "a.png,dark,7"]), r"labels\.csv:4: has 3 cells, expected 2"),
        (lines[0], "has no rows"),
        ("file,a,b\npictures/1.png,1,x", r"labels\.csv:2: 'x' is no number"),
        ("file,a,b\npictures/1.png,1,nan", "'nan' is no number"),
    ):
        data.write_text(text)
        with pytest.raises(FormatError, match=message):
            loaded(str(data))


def test_targets_of_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 28, 28), np.uint8), y=np.arange(12).reshape(6, 2))
    found = loaded(str(tmp_path / "a.npz"))
    assert (found.y.shape, found.y.dtype) == ((6, 2), np.float32)


def test_weighted_losses_are_the_weighted_mean_of_the_images(tmp_path: Path) -> None:
    from bridge.chain.functions import chainer

    loop = trained(config(tmp_path, class_weights={"1": 3.0, "2": 0.5}, validation_share=0.0, epochs=1))
    objective, labels = loop.plan.objective, loop.plan.train.y
    weights = np.array(objective.weights)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_allclose(weights / weights[0], [1, 3, 0.5, 1])
    values = loop.chain.run(loop.inputs.train.get(np.arange(20), 0), start=loop.inputs.train.start)
    scores = values[objective.scores].array
    each = -chainer.functions.log_softmax(scores).array[np.arange(20), labels[:20]]
    assert float(objective(values).array) == pytest.approx(float((weights[labels[:20]] * each).mean()), rel=1e-5)


def test_balanced_weights_make_classes_equal(tmp_path: Path) -> None:
    loop = trained(config(tmp_path, class_weights="balanced", epochs=1))
    totals = np.bincount(loop.plan.train.y) * np.array(loop.plan.objective.weights)
    np.testing.assert_allclose(totals, totals[0])
    with pytest.raises(UsageError, match="no class 'boot'"):
        trained(config(tmp_path, output=str(tmp_path / "other"), class_weights={"boot": 2.0}))
    files = net_with(tmp_path, "EuclideanLoss", 1)
    with pytest.raises(UsageError, match="needs a softmax loss"):
        trained(config(tmp_path, files=files, heads=(), output=str(tmp_path / "third"), class_weights="balanced"))
