"""What a run may take over from another, and what it must compute itself: features, log lines, statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.schema import Blob, RawLayer, RawNet
from tests.conftest import need
from tests.finetuning import MODEL, config, log_of, run, same_bits, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


# ---- features ------------------------------------------------------------------------------------


def reused(notes: list[str]) -> int:
    """How many sets of features an earlier run had computed."""
    return sum(note.startswith("features") and "reused" in note for note in notes)


def test_features_of_another_engine_are_not_taken(tmp_path: Path) -> None:
    """Engines agree within 1e-5 only, so that the run would depend on who filled the cache."""
    need("onnxruntime")
    for engine, expected in (("chainer", 0), ("onnxruntime", 0), ("chainer", 2), ("onnxruntime", 2)):
        notes: list[str] = []
        shared = {"cache_dir": str(tmp_path / "cache"), "trunk_engine": engine, "epochs": 1}
        run(config(tmp_path, output=str(tmp_path / f"{engine}{expected}"), **shared), notes)
        assert reused(notes) == expected, notes


def changed_model(path: Path, change: Any) -> tuple[str, str]:
    """The model's files with other text or other weights, under a name of their own."""
    text, net = Path(MODEL[0]).read_text(), bridge.load(*MODEL)
    weights = {layer.name: [blob.numpy().copy() for _, blob in layer.blobs.entries()] for layer in net if layer.blobs}
    text = change(text, weights)
    definition = prototxt.parse(text)
    layers = tuple(
        RawLayer(layer.text("name"), layer.text("type"), layer, tuple(map(Blob.of, weights[layer.text("name")])))
        for layer in definition.messages("layer")
        if layer.text("name") in weights
    )
    path.with_suffix(".prototxt").write_text(text)
    bridge.save(assemble(RawNet("made", layers, source="made"), definition), path.with_suffix(".caffemodel"))
    return str(path.with_suffix(".prototxt")), str(path.with_suffix(".caffemodel"))


def as_it_was(text: str, weights: dict[str, list[np.ndarray]]) -> str:
    return text


def one_weight(text: str, weights: dict[str, list[np.ndarray]]) -> str:
    weights["conv1"][0].reshape(-1)[7] += 1e-3
    return text


def one_bias(text: str, weights: dict[str, list[np.ndarray]]) -> str:
    weights["conv3"][1][0] += 1e-3
    return text


def one_parameter(text: str, weights: dict[str, list[np.ndarray]]) -> str:
    """The norm's strength: neither the wiring nor an array tells of it."""
    assert text.count("alpha: ") >= 1
    before, _, after = text.partition("alpha: ")
    return f"{before}alpha: 9{after}"


@pytest.mark.parametrize(("change", "expected"), [(as_it_was, 2), (one_weight, 0), (one_bias, 0), (one_parameter, 0)])
def test_features_of_another_trunk_are_not_taken(change: Any, expected: int, tmp_path: Path) -> None:
    shared = {"cache_dir": str(tmp_path / "cache"), "trunk_engine": "chainer", "epochs": 1}
    first = changed_model(tmp_path / "first", as_it_was)
    trained(config(tmp_path, files=first, output=str(tmp_path / "run1"), **shared))
    notes: list[str] = []
    second = changed_model(tmp_path / "second", change)
    run(config(tmp_path, files=second, output=str(tmp_path / "run2"), **shared), notes)
    assert reused(notes) == expected, notes


@pytest.mark.parametrize(("rows", "taken"), [(4, True), (3, False), (5, False)])
def test_features_of_another_number_of_images_are_not_taken(rows: int, taken: bool, tmp_path: Path) -> None:
    from bridge.finetuning.cache import Cache

    values = {"blob": np.arange(8, dtype=np.float32).reshape(4, 2)}
    Cache(tmp_path, "key", 4, 1000, keep=True).fill([values])
    cache = Cache(tmp_path, "key", rows, 1000)
    assert cache.load() == cache.reused == taken
    if taken:
        np.testing.assert_array_equal(cache.rows(np.array([2, 0]))["blob"], values["blob"][[2, 0]])


# ---- the log of a run that goes on ---------------------------------------------------------------


def test_lines_of_the_log_behind_the_snapshot_are_written_anew(tmp_path: Path) -> None:
    """As after a kill between a step and the next snapshot: no step is in the log twice, nor with other numbers."""
    shared: dict[str, Any] = {"trunk_engine": "chainer"}
    run(config(tmp_path, output=str(tmp_path / "whole"), epochs=2, **shared))
    run(config(tmp_path, output=str(tmp_path / "halves"), epochs=1, **shared))
    log = tmp_path / "halves" / "log.jsonl"
    last = log_of(tmp_path / "halves")[-1]
    with log.open("a") as file:
        for step in (1, 2):
            file.write(json.dumps({**last, "iteration": last["iteration"] + step, "loss": 99.0}) + "\n")
        file.write('{"iteration": ')
    run(config(tmp_path, output=str(tmp_path / "halves"), epochs=2, resume=True, **shared))
    steps = [record["iteration"] for record in log_of(tmp_path / "halves")]
    assert steps == list(range(len(steps)))
    assert same_bits(tmp_path / "whole", tmp_path / "halves")


# ---- statistics ----------------------------------------------------------------------------------

NORMS = {
    "BatchNorm": "",
    "BatchNorm of the batch": "batch_norm_param { use_global_stats: false }",
    "BatchNorm of the statistics": "batch_norm_param { use_global_stats: true }",
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_that_uses_the_batch_is_no_part_of_the_frozen_trunk(name: str, tmp_path: Path) -> None:
    """In training its result depends on the other images of the batch, so that no feature of an image exists."""
    norm = f'layer {{ name: "bn" type: "BatchNorm" bottom: "conv2" top: "conv2" {NORMS[name]} }}\n'

    def insert(text: str, weights: dict[str, list[np.ndarray]]) -> str:
        head, mark, tail = text.partition('layer { name: "relu2"')
        assert mark
        channels = weights["conv2"][0].shape[0]
        weights["bn"] = [np.zeros(channels, np.float32), np.ones(channels, np.float32), np.ones(1, np.float32)]
        return head + norm + mark + tail

    files = changed_model(tmp_path / "net", insert)
    made = trained(
        config(tmp_path, files=files, freeze=("conv*",), freeze_exactly=True, epochs=1, trunk_engine="chainer")
    )
    below = [layer.name for layer in made.plan.net][: made.plan.stages[0].cut.index]
    assert "conv2" in below
    assert ("bn" in below) == ("use_global_stats: true" in NORMS[name])
