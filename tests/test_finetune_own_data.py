"""``bridge finetune --solver`` without ``--data``: from the net's own data layers, and from a .solverstate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bridge
from tests.conftest import FIXTURES, ROOT, TRAINING, need

STATE = FIXTURES / "solverstate"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The recorded Adam run, its batches 10 to 19 in an HDF5 file that the net reads."""
    need("chainer", "h5py", "onnxruntime")
    import h5py

    with np.load(TRAINING / "batches.npz") as batches, h5py.File(tmp_path / "batches.h5", "w") as file:
        file["data"] = batches["x"][10:].astype(np.float32).reshape(-1, 1, 28, 28) / 256
        file["label"] = batches["y"][10:].astype(np.float32).reshape(-1)
    (tmp_path / "list.txt").write_text("batches.h5\n")
    net = (STATE / "train.prototxt").read_text().splitlines()
    source = (
        'layer { name: "d" type: "HDF5Data" top: "data" top: "label" '
        'hdf5_data_param { source: "list.txt" batch_size: 32 } }'
    )
    kept = [line for line in net if 'type: "Input"' not in line]
    (tmp_path / "train.prototxt").write_text("\n".join([kept[0], source, *kept[1:]]))
    solver = (STATE / "solver.prototxt").read_text().replace('snapshot_prefix: "snap"', "")
    (tmp_path / "solver.prototxt").write_text(
        solver.replace("snapshot: 10", "snapshot: 5") + "test_iter: 2 test_interval: 5"
    )
    for file in STATE.glob("snap_iter_10.*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def finetune(folder: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "finetune", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def weights(file: Path) -> dict[str, np.ndarray]:
    return {f"{layer.name}/{role}": array for layer in bridge.load(file).layers for role, array in layer.blobs.items()}


def test_goes_on_from_caffes_own_solverstate(folder: Path) -> None:
    said = finetune(folder, "snap_iter_10.solverstate", "--solver", "solver.prototxt", "-o", "run")
    assert said.startswith("run: 20 iterations, ")
    assert "acc 0." in said or "acc 1" in said
    found, wanted = weights(folder / "run" / "model.caffemodel"), weights(STATE / "snap_iter_20.caffemodel")
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"model.onnx", "deploy.prototxt", "net.prototxt", "snapshot_iter_15.solverstate"} <= names
    deploy = bridge.load(folder / "run" / "deploy.prototxt", folder / "run" / "model.caffemodel")
    assert deploy.inputs == {"data": (1, 1, 28, 28)}
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in log if "lr" in record] == [*range(10, 20)]
    assert [record["iteration"] for record in log if "test" in record] == [10, 15, 20]
    with np.load(STATE / "loss.npz") as recorded:
        losses = [record["loss"] for record in log if "lr" in record]
        np.testing.assert_allclose(losses, recorded["loss"][10:], rtol=1e-5)


def test_paths_are_found_beside_the_solver(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "list.txt").write_text(f"{folder}/batches.h5\n")
    finetune(elsewhere, str(folder / "snap_iter_10.caffemodel"), "--solver", str(folder / "solver.prototxt"), "-o", "r")
    assert (elsewhere / "r" / "model.caffemodel").exists()
    assert not (folder / "r").exists()


def test_resume_goes_on_from_the_last_snapshot(folder: Path) -> None:
    finetune(folder, "snap_iter_10.solverstate", "--solver", "solver.prototxt", "-o", "run")
    for name in ("snapshot_iter_20.solverstate", "snapshot_iter_20.caffemodel", "model.onnx"):
        (folder / "run" / name).unlink()
    assert finetune(folder, "--solver", "solver.prototxt", "-o", "run", "--resume").startswith("run: 20 iterations")
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in log if "lr" in record] == [*range(10, 20), *range(15, 20)]
    assert (folder / "run" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "solver.prototxt", "-o", "run", "--freeze", "a"], "--freeze needs --data"),
        (["snap_iter_10.caffemodel", "-o", "run"], "there is no --data"),
        (["--solver", "gone.prototxt", "-o", "run"], "gone.prototxt: does not exist"),
        (["--solver", "solver.prototxt", "-o", "."], ".: is not empty"),
        (["snap_iter_10.caffemodel"] * 2 + ["--solver", "solver.prototxt", "-o", "run"], "are both weights"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(arguments: list[str], message: str, folder: Path) -> None:
    said = finetune(folder, *arguments, status=2)
    assert message in said
    assert "Traceback" not in said
    assert not (folder / "run").exists()
