"""Solvers of recorded runs, and a small net for others."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TRAINING

NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 3 } shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 20 random_seed: 1 snapshot_prefix: "m" '


def solver_in(folder: Path, case: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> Any:
    """The solver of a recorded case, which writes into the folder."""
    from bridge import caffe

    for name in ("train.prototxt", "start.caffemodel"):
        shutil.copy(case / name, folder)
    text = re.sub(r"(?m)^snapshot.*$", "", (case / "solver.prototxt").read_text())
    (folder / "solver.prototxt").write_text(f'{text}\nsnapshot_prefix: "snap"\nsnapshot_after_train: false\n{more}')
    monkeypatch.chdir(folder)
    made = caffe.get_solver("solver.prototxt")
    made.net.copy_from("start.caffemodel")
    return made


def feeder(solver: Any) -> Callable[[int], None]:
    """Puts a recorded batch into a solver's net."""
    with np.load(TRAINING / "batches.npz") as batches:
        x, y = batches["x"], batches["y"]

    def feed(batch: int) -> None:
        blobs = solver.net.blobs
        blobs["data"].data[...] = (x[batch % len(x)].astype(np.float32) / 256).reshape(blobs["data"].data.shape)
        blobs["label"].data[...] = y[batch % len(y)]

    return feed


def differences(solver: Any, file: Path) -> float:
    """The largest difference of a parameter from those in a file."""
    from bridge import caffe

    end = caffe.Net("train.prototxt", str(file), caffe.TRAIN)
    pairs = [
        (a.data, b.data) for name in end.params for a, b in zip(end.params[name], solver.net.params[name], strict=True)
    ]
    return max(float(np.abs(a - b).max()) for a, b in pairs)
