"""caffe's solvers: their steps, their files, and the commands of the caffe program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import BridgeError, FormatError, MissingFileError, ModelError
from bridge.files.solver_state import SolverState, read_solver_state, write_solver_state
from bridge.schema import Blob
from tests.conftest import FIXTURES, ROOT, TRAINING, need

STATE = FIXTURES / "solverstate"
CASES = sorted(path.parent.name for path in TRAINING.glob("*/end.caffemodel"))


@pytest.fixture(autouse=True)
def _chainer(monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer")
    from bridge.caffe.state import STATE

    monkeypatch.setattr(STATE, "stream", None)  # a command here would leave its own


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


@pytest.mark.parametrize("case", CASES)
def test_recorded_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = solver_in(tmp_path, TRAINING / case, monkeypatch)
    feed, number = feeder(solver), iter(range(100))
    solver.net.before_forward(lambda index: feed(next(number)) if index == 0 else None)
    solver.add_callback(lambda: None, lambda: None)
    solver.step(solver.param.max_iter)
    assert solver.iter == solver.param.max_iter
    assert differences(solver, TRAINING / case / "end.caffemodel") < 2e-5


# -- a solver's memory -----------------------------------------------------------------------------


def goes_on(solver: Any, steps: int = 10) -> float:
    feed = feeder(solver)
    assert solver.iter == 10
    for batch in range(10, 10 + steps):
        feed(batch)
        solver.step(1)
    return differences(solver, STATE / "snap_iter_20.caffemodel")


def test_goes_on_from_caffes_own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = solver_in(tmp_path, STATE, monkeypatch)
    solver.restore(str(STATE / "snap_iter_10.solverstate"))
    assert goes_on(solver) < 1e-5


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_a_snapshot_brings_everything_back(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(*(["h5py"] if form == "HDF5" else []))
    first = solver_in(tmp_path, STATE, monkeypatch, f"snapshot_format: {form}")
    first.restore(STATE / "snap_iter_10.solverstate")
    first.snapshot()
    end = ".h5" if form == "HDF5" else ""
    second = solver_in(tmp_path, STATE, monkeypatch)
    second.restore(f"snap_iter_10.solverstate{end}")
    found, own = (
        read_solver_state(STATE / "snap_iter_10.solverstate"),
        read_solver_state(f"snap_iter_10.solverstate{end}"),
    )
    assert (own.iteration, own.learned_net, own.current_step) == (
        10,
        f"snap_iter_10.caffemodel{end}",
        found.current_step,
    )
    for a, b in zip(found.history, own.history, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert goes_on(second) < 1e-5


def test_the_binary_state_is_caffes_bytes(tmp_path: Path) -> None:
    state = read_solver_state(STATE / "snap_iter_10.solverstate")
    write_solver_state(tmp_path / "again.solverstate", state)
    assert (tmp_path / "again.solverstate").read_bytes() == (STATE / "snap_iter_10.solverstate").read_bytes()


REAL = """
import os, sys
os.environ["GLOG_minloglevel"] = "3"
import numpy as np, caffe
solver = caffe.get_solver("real.prototxt")
solver.restore(sys.argv[1])
batches = np.load(sys.argv[2])
for i in range(10, 20):
    solver.net.blobs["data"].data[...] = batches["x"][i].astype("f") / 256
    solver.net.blobs["label"].data[...] = batches["y"][i]
    solver.step(1)
solver.net.save("real.caffemodel")
print(solver.iter)
"""


@pytest.mark.caffe
@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_the_real_caffe_goes_on_from_ours(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = solver_in(tmp_path, STATE, monkeypatch, f"snapshot_format: {form}")
    feed = feeder(solver)
    for batch in range(10):
        feed(batch)
        solver.step(1)
    solver.snapshot()
    (tmp_path / "real.prototxt").write_text((tmp_path / "solver.prototxt").read_text())
    end = ".h5" if form == "HDF5" else ""
    python = shlex.split(os.environ["BRIDGE_PYCAFFE_PYTHON"])[0]
    command = [python, "-c", REAL, f"snap_iter_10.solverstate{end}", str(TRAINING / "batches.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["20"], done.stderr
    assert goes_on(solver) < 1e-5
    assert differences(solver, tmp_path / "real.caffemodel") < 1e-5


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = solver_in(tmp_path, STATE, monkeypatch)
    state = read_solver_state(STATE / "snap_iter_10.solverstate")
    cases = {
        "has 7 arrays of history, expected 8": state.history[:-1],
        "history 7 is 3, expected 5": (*state.history[:-1], Blob.of(np.zeros(3, np.float32))),
    }
    before = [blob.numpy().copy() for blob in solver._updates.history()]
    for message, history in cases.items():
        write_solver_state("bad.solverstate", SolverState(10, "", 0, history))
        with pytest.raises(ModelError, match=message):
            solver.restore("bad.solverstate")
    assert solver.iter == 0
    for a, b in zip(before, solver._updates.history(), strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_files_that_are_no_state_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = solver_in(tmp_path, STATE, monkeypatch)
    with pytest.raises(MissingFileError, match=r"absent\.solverstate: does not exist"):
        solver.restore("absent.solverstate")
    for content in (b"", b"<html>", (STATE / "snap_iter_10.solverstate").read_bytes()[:500]):
        Path("bad.solverstate").write_bytes(content)
        with pytest.raises(FormatError, match=r"bad\.solverstate: "):
            solver.restore("bad.solverstate")
    write_solver_state("lone.solverstate", SolverState(1, "gone.caffemodel", 0, ()))
    with pytest.raises(MissingFileError, match=r"names 'gone\.caffemodel', which does not exist"):
        solver.restore("lone.solverstate")


# -- what scripts do with solvers ------------------------------------------------------------------

NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 3 } shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 20 random_seed: 1 snapshot_prefix: "m" '


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(text: str) -> Any:
    from bridge import caffe

    Path("solver.prototxt").write_text(text)
    return caffe.get_solver("solver.prototxt")


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_the_class_decides_and_the_type_chooses_it(kind: str, here: Path) -> None:
    from bridge import caffe

    solver = made(f'{SOLVER} type: "{kind}"')
    assert type(solver) is getattr(caffe, f"{kind}Solver")
    Path("plain.prototxt").write_text(SOLVER)
    forced = getattr(caffe, f"{kind}Solver")("plain.prototxt")
    assert forced.param.type == kind
    forced.step(3)
    assert forced.iter == 3


def test_the_diff_is_the_update_afterwards(here: Path) -> None:
    solver = made(SOLVER + "momentum: 0.9 weight_decay: 0.01")
    weight = solver.net.params["ip"][0]
    weight.data[...], weight.diff[...] = 2, 1
    solver.apply_update()
    np.testing.assert_allclose(weight.diff, 0.5 * (1 + 0.01 * 2), rtol=1e-6)
    np.testing.assert_allclose(weight.data, 2 - 0.5 * (1 + 0.01 * 2), rtol=1e-6)
    assert solver.iter == 1


def test_base_lr_can_be_changed_and_lr_says_it(here: Path) -> None:
    solver = made(SOLVER)
    assert solver.lr == 0.5
    solver.param.base_lr = 0.25
    assert solver.lr == 0.25
    bias = solver.net.params["ip"][1]
    bias.data[...], bias.diff[...] = 0, 1
    solver.apply_update()
    np.testing.assert_array_equal(bias.data, [-0.5, -0.5])  # lr_mult is 2


def test_callbacks_come_around_the_gradients(here: Path) -> None:
    solver, seen = made(SOLVER), []
    gradient = solver.net.params["ip"][0]
    solver.add_callback(lambda: seen.append(float(np.abs(gradient.diff).sum())), lambda: seen.append(-1.0))
    solver.step(2)
    assert seen == [0.0, -1.0, 0.0, -1.0]


def test_test_nets_have_the_trained_parameters(here: Path) -> None:
    from bridge import caffe

    solver = made(SOLVER + "test_iter: 2 test_interval: 5")
    solver.solve()
    assert solver.iter == 20
    assert sorted(path.name for path in here.glob("m_*")) == ["m_iter_20.caffemodel", "m_iter_20.solverstate"]
    np.testing.assert_array_equal(solver.test_nets[0].params["ip"][0].data, solver.net.params["ip"][0].data)
    other = caffe.Net("net.prototxt", caffe.TEST)
    solver.share_weights(other)
    other.params["ip"][0].data[...] = 3
    assert np.all(solver.net.params["ip"][0].data == 3)


def test_iter_size_adds_gradients_up(here: Path) -> None:
    first, second = made(SOLVER), made(SOLVER + "iter_size: 3")
    for solver in (first, second):
        solver.net.params["ip"][0].data[...] = 0.1
        solver.net.params["ip"][1].data[...] = 0
        constant = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
        data = solver.net.blobs["data"]
        solver.net.after_forward(
            lambda index, data=data, x=constant: data.data.__setitem__(..., x) if index == 0 else None
        )
        solver.step(1)
    np.testing.assert_allclose(first.net.params["ip"][0].data, second.net.params["ip"][0].data, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SOLVER.replace('net: "net.prototxt"', ""), "names no net"),
        (SOLVER + 'train_net: "net.prototxt"', "names train_net and net"),
        (SOLVER.replace("net.prototxt", "gone.prototxt"), r"gone\.prototxt': does not exist"),
        (SOLVER + "test_iter: 1", "test_iter without a positive test_interval"),
        (SOLVER + 'test_net: "net.prototxt"', "has 0 test_iter for 1 test nets"),
        (SOLVER + "average_loss: 0", "average_loss is 0"),
        (SOLVER.replace('"m"', '"gone/m"') + "snapshot: 5", "cannot write there"),
        (SOLVER + 'type: "Magic"', "unknown solver type 'Magic'"),
        (SOLVER + "lerning_rate: 1", "unknown solver parameter 'lerning_rate'"),
    ],
)
def test_bad_solvers_are_one_line(text: str, message: str, here: Path) -> None:
    with pytest.raises(BridgeError, match=message) as caught:
        made(text)
    assert "\n" not in str(caught.value.args[0])


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
