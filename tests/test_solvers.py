"""caffe's solvers: their steps and their files."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import BridgeError, FormatError, MissingFileError, ModelError
from bridge.files.solver_state import SolverState, read_solver_state, write_solver_state
from bridge.schema import Blob
from tests.conftest import FIXTURES, TRAINING, need
from tests.solvers import NET, SOLVER, differences, feeder, solver_in

STATE = FIXTURES / "solverstate"
CASES = sorted(path.parent.name for path in TRAINING.glob("*/end.caffemodel"))


@pytest.fixture(autouse=True)
def _chainer(monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer")
    from bridge.caffe.state import STATE

    monkeypatch.setattr(STATE, "stream", None)  # a command here would leave its own


@pytest.mark.training
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


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_slope_that_all_channels_share_is_trained(kind: str, here: Path) -> None:
    """A parameter without axes, as PReLU with channel_shared has it."""
    shared = 'layer { name: "slope" type: "PReLU" bottom: "ip" top: "ip" prelu_param { channel_shared: true } }\n'
    loss = 'layer { name: "loss"'
    Path("net.prototxt").write_text(NET.replace(loss, shared + loss))
    solver = made(f'{SOLVER} type: "{kind}" weight_decay: 0.01 regularization_type: "L1"')
    before = solver.net.params["slope"][0].data.copy()
    solver.step(3)
    after = solver.net.params["slope"][0].data
    assert after.shape == ()
    assert np.isfinite(after)
    assert after != before
