"""A run is a function of its seed: no clock, load, number of threads or order of hashes decides about its numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import engines
from bridge.errors import MissingExtraError, UsageError
from bridge.finetuning import blas
from tests.conftest import ROOT, TRAINING, need
from tests.finetuning import call, config, environment, log_of, need_exact, run, same_bits, small_npz, trained

WIDE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 16 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 20 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 64 kernel_size: 5 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "drop2" type: "Dropout" bottom: "conv2" top: "conv2" }
layer { name: "fc8" type: "InnerProduct" bottom: "conv2" top: "fc8"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""
"""The products of conv2 have 500 terms: OpenBLAS adds them in another order where it has more threads."""


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Four processes that compute all the time."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


# ---- the same run twice -----------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["none", "conv1"])
def test_the_same_run_ends_in_the_same_bits_under_load_and_with_other_threads(frozen: str, tmp_path: Path) -> None:
    need("threadpoolctl")
    (tmp_path / "net.prototxt").write_text(WIDE)
    data = small_npz(tmp_path / "data.npz", 96)
    freeze = [] if frozen == "none" else ["--freeze", frozen]

    def once(name: str, **variables: str) -> None:
        line = ["finetune", tmp_path / "net.prototxt", "--data", data, "--epochs", 2, "--scale", 0.004, "--seed", 3]
        done = call(*line, *freeze, "--mirror", "-q", "-o", tmp_path / name, env=environment(**variables))
        assert done.returncode == 0, done.stderr

    once("alone", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONHASHSEED="1")
    with load():
        once("loaded", OMP_NUM_THREADS="3", OPENBLAS_NUM_THREADS="3", PYTHONHASHSEED="2")
    assert same_bits(tmp_path / "alone", tmp_path / "loaded")


def test_the_number_of_threads_is_a_setting(tmp_path: Path) -> None:
    """It is recorded, and a run is not resumed with another one."""
    settings = config(tmp_path, epochs=1)
    trained(settings)
    with pytest.raises(UsageError, match="was started with --threads 1, now it is 2"):
        run(dataclasses.replace(settings, threads=2, resume=True))


def test_what_a_callback_draws_changes_nothing(tmp_path: Path) -> None:
    """Each step has a seed of its own, and NumPy's generator is afterwards as it was before."""
    from bridge.finetuning.listener import Listener
    from bridge.finetuning.run import begin

    trained(config(tmp_path, output=str(tmp_path / "quiet")))
    np.random.seed(5)
    begin(config(tmp_path), Listener(lambda record: np.random.rand(3))).run()
    after = np.random.rand()
    assert log_of(tmp_path / "run") == log_of(tmp_path / "quiet")
    np.random.seed(5)
    assert after == np.random.rand()


# ---- the engine of the trunk ------------------------------------------------------------------


def engine_of(loop: Any) -> str:
    return str(loop.plan.stages[0].trunk.engine)


def test_onnxruntime_computes_the_trunk_where_it_agrees(tmp_path: Path) -> None:
    need("onnxruntime")
    notes: list[str] = []
    made = trained(config(tmp_path), notes)
    (said,) = [note for note in notes if note.startswith("trunk of 12 of 17 layers in onnxruntime")]
    assert float(said.rpartition(" ")[2]) <= 1e-5
    assert made.at.state.engines == ["onnxruntime"]
    logs = []
    for engine in ("chainer", "onnxruntime"):
        assert engine_of(trained(config(tmp_path, output=str(tmp_path / engine), trunk_engine=engine))) == engine
        logs.append([record["loss"] for record in log_of(tmp_path / engine)])
    np.testing.assert_allclose(*logs, rtol=0, atol=1e-5)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "onnxruntime")


@pytest.mark.parametrize(("shift", "engine"), [(0.0, "onnxruntime"), (1e-3, "chainer"), (float("nan"), "chainer")])
def test_chainer_computes_the_trunk_where_the_engines_differ(
    shift: float, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")
    from bridge.finetuning.trunk import OnnxTrunk

    compute = OnnxTrunk.__call__

    def shifted(self: Any, x: np.ndarray) -> dict[str, Any]:
        return {blob: values + np.float32(shift) for blob, values in compute(self, x).items()}

    monkeypatch.setattr(OnnxTrunk, "__call__", shifted)
    notes: list[str] = []
    assert engine_of(trained(config(tmp_path, epochs=1), notes)) == engine
    assert any(f"trunk of 12 of 17 layers in {engine}" in note for note in notes)


def _without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = engines.missing

    def missing(name: str) -> MissingExtraError | None:
        lost = MissingExtraError("engine 'onnxruntime': onnxruntime is not installed", hint="pip install onnxruntime")
        return lost if name == "onnxruntime" else usual(name)

    monkeypatch.setattr(engines, "missing", missing)


def test_without_onnxruntime_chainer_computes_the_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_onnxruntime(monkeypatch)
    assert engine_of(trained(config(tmp_path, epochs=1))) == "chainer"
    with pytest.raises(MissingExtraError, match="onnxruntime is not installed"):
        trained(config(tmp_path, output=str(tmp_path / "other"), trunk_engine="onnxruntime"))
    assert not (tmp_path / "other").exists()


def test_a_resumed_run_keeps_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed since; where the engine is gone, the run is not continued."""
    need("onnxruntime")
    settings = config(tmp_path, epochs=1)
    with monkeypatch.context() as patch:
        _without_onnxruntime(patch)
        trained(settings)
    longer = dataclasses.replace(settings, epochs=2, resume=True)
    assert engine_of(trained(longer)) == "chainer"
    other = config(tmp_path, epochs=1, output=str(tmp_path / "other"))
    assert engine_of(trained(other)) == "onnxruntime"
    _without_onnxruntime(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"(?s)began with its trunk in onnxruntime.*pip install onnxruntime"):
        trained(dataclasses.replace(other, epochs=2, resume=True))


def test_a_cache_is_not_reused_by_another_engine_or_other_software(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bridge.finetuning import stages

    shared: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "trunk_engine": "chainer", "epochs": 1}

    def reused(name: str, **changes: Any) -> bool:
        notes: list[str] = []
        trained(config(tmp_path, output=str(tmp_path / name), **{**shared, **changes}), notes)
        return any(": reused, in" in note for note in notes)

    assert not reused("first")
    assert reused("again")
    assert not reused("threads", threads=2)
    monkeypatch.setattr(stages, "software", lambda engine: "chainer 7.8.1, numpy 1.24.0, openblas 0.3.21 Haswell")
    assert not reused("software")
    monkeypatch.undo()
    need("onnxruntime")
    assert not reused("engine", trunk_engine="onnxruntime")


def test_other_software_is_said_when_a_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.finetuning import plan

    settings = config(tmp_path, epochs=1, trunk_engine="chainer")
    trained(settings)
    notes: list[str] = []
    trained(dataclasses.replace(settings, epochs=2, resume=True), notes)
    assert not any("began with" in note for note in notes)
    monkeypatch.setattr(plan, "software", lambda engine: "chainer 7.8.1, numpy 9.0")
    trained(dataclasses.replace(settings, epochs=3, resume=True), notes)
    assert any("now it is chainer 7.8.1, numpy 9.0: values may differ in the last place" in note for note in notes)


# ---- the arithmetic of a replay ---------------------------------------------------------------

REPLAY = """
import sys
folder, output, exact = sys.argv[1:]
if exact == "exact":
    from bridge.finetuning import exact_arithmetic
    assert exact_arithmetic()
from bridge.caffe_files import prototxt
from bridge.finetuning import Config, Listener, finetune, read_solver
files = f"{folder}/train.prototxt", f"{folder}/start.caffemodel"
recipe = read_solver(prototxt.parse_file(f"{folder}/solver.prototxt"))
config = Config(files, f"{folder}/../batches.npz", output, recipe=recipe, scale=0.00390625)
run = finetune(config, listener=Listener(note=print))
"""
"""A replay from Python."""


def replayed(output: Path, exact: str, **variables: str) -> str:
    """The notes of a replay in a process of its own."""
    folder = TRAINING / "nesterov_iter_size"
    line = [sys.executable, "-c", REPLAY, str(folder), str(output), exact]
    own = {name: value for name, value in environment(**variables).items() if name != "OPENBLAS_CORETYPE"}
    own.update({name: value for name, value in variables.items() if name == "OPENBLAS_CORETYPE"})
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=own, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_replay_from_python_has_the_bits_of_the_command_line(tmp_path: Path) -> None:
    need_exact()
    folder = TRAINING / "nesterov_iter_size"
    command = call(
        "finetune", folder / "train.prototxt", folder / "start.caffemodel", "--solver", folder / "solver.prototxt",
        "--data", TRAINING / "batches.npz", "--scale", "0.00390625", "-o", tmp_path / "command",
    )  # fmt: skip
    assert command.returncode == 0, command.stderr
    assert "matrix products" not in command.stderr
    assert "matrix products" not in replayed(tmp_path / "python", "exact")
    assert same_bits(tmp_path / "command", tmp_path / "python")


def test_a_replay_with_other_kernels_says_so_and_how_to_get_caffes(tmp_path: Path) -> None:
    need_exact()
    said = replayed(tmp_path / "run", "", OPENBLAS_CORETYPE="Nehalem")
    (note,) = [line for line in said.splitlines() if "matrix products" in line]
    assert "Nehalem" in note
    assert "exact_arithmetic() before NumPy is imported" in note


def test_importing_the_command_sets_nothing_and_imports_no_numpy() -> None:
    code = "import os, sys; before = dict(os.environ); import bridge.cli.finetune, bridge.finetuning.blas\n"
    code += "assert dict(os.environ) == before; assert 'numpy' not in sys.modules"
    line = [sys.executable, "-c", code, "--solver", "a", "--data", str(TRAINING / "batches.npz")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_kernels_that_a_user_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.setattr(blas, "has_kernels", lambda: True)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    assert not blas.exact_arithmetic()
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert blas.exact_arithmetic()
    assert blas.os.environ["OPENBLAS_CORETYPE"] == "Haswell"
    monkeypatch.setattr(blas, "has_kernels", lambda: False)
    assert not blas.exact_arithmetic()
