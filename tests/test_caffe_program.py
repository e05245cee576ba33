"""The commands of the caffe program, and training from a database."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, need
from tests.solvers import NET, SOLVER, differences


@pytest.fixture(autouse=True)
def _chainer(monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer")
    from bridge.caffe.state import STATE

    monkeypatch.setattr(STATE, "stream", None)  # a command here would leave its own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the caffe program -----------------------------------------------------------------------------


def caffe(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bridge.caffe", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


LINE = re.compile(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+\] (.*)")


def test_train_prints_what_parse_log_reads(here: Path) -> None:
    Path("solver.prototxt").write_text(SOLVER + "display: 5 test_iter: 3 test_interval: 10 average_loss: 4")
    lines = caffe("train", "--solver=solver.prototxt")
    texts = [match[1] for line in lines if (match := LINE.fullmatch(line))]
    assert len(texts) == len(lines)
    shown = [text for text in texts if re.match(r"Iteration \d+ \(.* iter/s, .*s/5 iters\), loss = \S+$", text)]
    assert [int(re.findall(r"\d+", text)[0]) for text in shown] == [0, 5, 10, 15]
    assert sum(text.startswith("Iteration ") and ", lr = 0.5" in text for text in texts) == 4
    outputs = [text for text in texts if re.match(r"    Train net output #0: loss = \S+ \(\* 1 = \S+ loss\)$", text)]
    assert len(outputs) == 4
    tests = [text for text in texts if text.startswith("    Test net output #")]
    assert len(tests) == 3 * 2
    assert re.match(r"    Test net output #0: acc = (0|1|0\.\d+)$", tests[0])
    assert texts[-1] == "Optimization Done."
    assert any(text.startswith("Solving") for text in texts)


def test_a_solver_that_asks_for_a_gpu_says_where_it_trains(here: Path) -> None:
    from bridge.chain.devices import cuda_problem

    Path("solver.prototxt").write_text(SOLVER.replace("max_iter: 20", "max_iter: 1") + "solver_mode: GPU")
    lines = [line.split("] ", 1)[1] for line in caffe("train", "--solver=solver.prototxt")]
    problem = cuda_problem()
    wanted = [f"The solver asks for a GPU, but {problem}.", "Use CPU."] if problem else ["Use GPU with device ID 0"]
    assert lines[: len(wanted)] == wanted


def test_train_goes_on_and_starts_from_weights(here: Path) -> None:
    Path("solver.prototxt").write_text(SOLVER + "snapshot: 10")
    caffe("train", "-solver", "solver.prototxt")
    whole = Path("m_iter_20.caffemodel").read_bytes()
    lines = caffe("train", "--solver=solver.prototxt", "--snapshot=m_iter_10.solverstate")
    assert any("Resuming from m_iter_10.solverstate" in line for line in lines)
    assert Path("m_iter_20.solverstate").exists()
    lines = caffe("test", "--model=net.prototxt", "--weights=m_iter_20.caffemodel", "--iterations=4")
    texts = [match[1] for line in lines if (match := LINE.fullmatch(line))]
    assert sum(bool(re.match(r"Batch \d, (acc|loss) = ", text)) for text in texts) == 8
    assert re.match(r"loss = \S+ \(\* 1 = \S+ loss\)$", texts[-1])
    assert whole


def test_time_measures_each_layer(here: Path) -> None:
    texts = [line.split("] ", 1)[1] for line in caffe("time", "--model=net.prototxt", "--iterations=2")]
    assert sum("\tforward: " in text for text in texts) == sum("\tbackward: " in text for text in texts) == 3
    assert texts[-1] == "*** Benchmark ends ***"
    assert any(re.match(r"Average Forward-Backward: \S+ ms\.$", text) for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "train needs --solver=FILE"),
        (["test", "--model=net.prototxt"], "test needs --weights=FILE"),
        (["time", "--model=gone.prototxt"], "gone.prototxt: does not exist"),
        (["train", "--solver=solver.prototxt", "--snapshot=a", "--weights=b"], "exclude each other"),
        (["train", "--solver=solver.prototxt", "--gpu=0,1"], "expected the number of one device"),
    ],
)
def test_bad_flags_are_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bridge.caffe import commands

    Path("solver.prototxt").write_text(SOLVER)
    assert commands.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_signal_stops_between_iterations_with_a_snapshot(here: Path) -> None:
    Path("solver.prototxt").write_text(SOLVER.replace("max_iter: 20", "max_iter: 1000000") + "display: 1")
    command = [sys.executable, "-m", "bridge.caffe", "train", "--solver=solver.prototxt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Iteration 3" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "Optimization stopped early." in rest
    assert list(here.glob("m_iter_*.solverstate"))


# -- from a database, as in Caffe ------------------------------------------------------------------

FROM_DATA = """
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "u8.lmdb" batch_size: 4 backend: LMDB }
  transform_param { crop_size: 6 mirror: true mean_file: "mean.binaryproto" scale: 0.01 } }
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "u8.leveldb" batch_size: 2 backend: LEVELDB }
  transform_param { crop_size: 6 mean_value: 100 scale: 0.01 } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "ip" inner_product_param { num_output: 61
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }
"""
FROM_DATA_SOLVER = (
    'net: "net.prototxt" base_lr: 0.05 momentum: 0.9 weight_decay: 0.001 lr_policy: "step" gamma: 0.5 stepsize: 4 '
    "test_iter: 3 test_interval: 5 max_iter: 10 display: 5 random_seed: 7 snapshot_after_train: false"
)
REAL_FROM_DATA = """
import caffe
solver = caffe.get_solver("solver.prototxt")
solver.net.save("start.caffemodel")
solver.solve()
solver.net.save("end.caffemodel")
"""


@pytest.mark.caffe
def test_trains_from_a_database_as_the_real_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same order, crops and mirrors: after ten steps the same parameters, and the same scores on the way."""
    need("lmdb", "plyvel", "h5py", "PIL")
    from tests.sources import write_inputs

    write_inputs(tmp_path)
    (tmp_path / "train.prototxt").write_text(FROM_DATA)
    (tmp_path / "net.prototxt").write_text(FROM_DATA)
    (tmp_path / "solver.prototxt").write_text(FROM_DATA_SOLVER)
    python = shlex.split(os.environ["BRIDGE_PYCAFFE_PYTHON"])[0]
    real = subprocess.run([python, "-c", REAL_FROM_DATA], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = caffe_in(tmp_path, "train", "--solver=solver.prototxt", "--weights=start.caffemodel")
    wanted, found = (scores_in(text.splitlines()) for text in (real.stderr, "\n".join(lines)))
    assert len(wanted) == 3 * 2 + 2
    assert [name for name, _ in found] == [name for name, _ in wanted]
    np.testing.assert_allclose([value for _, value in found], [value for _, value in wanted], rtol=2e-5)
    monkeypatch.chdir(tmp_path)
    from bridge import caffe

    solver = caffe.get_solver("solver.prototxt")
    solver.net.copy_from("start.caffemodel")
    solver.solve()
    assert differences(solver, tmp_path / "end.caffemodel") < 1e-5


def caffe_in(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bridge.caffe", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def scores_in(lines: list[str]) -> list[tuple[str, float]]:
    """Outputs of the nets, and their values, in a log."""
    pattern = re.compile(r"(T\w+ net output #\d+: \S+) = (\S+)")
    return [(match[1], float(match[2])) for line in lines if (match := pattern.search(line))]
