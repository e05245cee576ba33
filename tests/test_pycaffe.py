"""Reader and engine ``pycaffe``: against the real Caffe where there is one, and against one that misbehaves."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from backends import pycaffe
from backends.pycaffe import child
from bridge import engines
from bridge.errors import (
    BridgeError,
    FormatError,
    MissingExtraError,
    MissingFileError,
    ModelError,
    UnsupportedLayerError,
    UsageError,
)
from bridge.files import readers
from tests.conftest import FASHION, FIXTURES, GOLDEN, ROOT, missing, need
from tests.nets import make
from tests.reader_contract import ReaderContract, recorded, weights_of

pytestmark = pytest.mark.process

FAKE = ROOT / "tests" / "fake_caffe"
WORKER = ROOT / "backends" / "pycaffe" / "worker.py"


def text(name: str) -> str:
    return (
        f'name: "{name}" layer {{ name: "data" type: "Input" top: "data" }}'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }'
        'layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" }'
    )


# -- the real Caffe ----------------------------------------------------------------------------


@pytest.mark.caffe
class TestContract(ReaderContract):
    reader = "pycaffe"
    single = True


@pytest.mark.caffe
@pytest.mark.parametrize("case", [FASHION, *GOLDEN], ids=lambda case: case.name)
def test_recorded_blobs(case: Path) -> None:
    inputs, outputs = recorded(case)
    try:
        session = pycaffe.Session((case / "deploy.prototxt").read_text(), weights_of(case))
    except UnsupportedLayerError as error:
        pytest.skip(f"this build of Caffe cannot: {error.args[0]}")
    with session:
        found = session.forward(inputs, outputs)
    for name, expected in outputs.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.caffe
def test_in_place_blobs_are_seen_layer_by_layer() -> None:
    case = FIXTURES / "golden" / "net_inplace"
    inputs, _ = recorded(case)
    with pycaffe.Session((case / "deploy.prototxt").read_text(), weights_of(case)) as session:
        layers = session.forward_by_layer(inputs)
        assert [name for name, _ in layers] == [name for name, _ in session.layers]
        assert set(dict(session.layers).values()).isdisjoint({"Split"})
        last = {top: values for _, tops in layers for top, values in tops.items()}
        for name, values in session.forward(inputs).items():
            assert np.array_equal(last[name], values)
    written = [tops["c1"] for _, tops in layers if "c1" in tops]
    assert len(written) > 1
    assert any(not np.array_equal(values, written[0]) for values in written[1:])


@pytest.mark.caffe
@pytest.mark.parametrize("nothing", [-np.inf, np.nan])
def test_the_chain_pools_what_is_no_number_as_caffe_does(nothing: float) -> None:
    need("chainer")
    net = make(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [1, 2, 5, 5] } } }'
        'layer { name: "p" type: "Pooling" bottom: "x" top: "y" top: "mask" '
        "pooling_param { kernel_size: 3 stride: 2 pad: 1 } }"
    )
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)
    x[0, 0], x[0, 1, :3] = nothing, nothing
    found, expected = (engines.make(name, net).outputs({"x": x}) for name in ("chainer", "pycaffe"))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.caffe
def test_inputs_of_other_shapes() -> None:
    with pycaffe.Session((FASHION / "deploy.prototxt").read_text(), weights_of(FASHION)) as session:
        one, three = (session.forward({"data": np.ones((n, 1, 28, 28))}) for n in (1, 3))
        assert three["prob"].shape == (3, 10)
        assert np.array_equal(three["prob"][2:], one["prob"])
        with pytest.raises(ModelError, match="Caffe says: "):
            session.forward({"data": np.ones((1, 1, 2))})
        assert np.array_equal(session.forward({"data": np.ones((1, 1, 28, 28))})["prob"], one["prob"])


@pytest.mark.caffe
def test_definition_inside_the_caffemodel() -> None:
    weights = weights_of(FIXTURES / "golden" / "net_alexnet_mini_v0")
    ours, theirs = bridge.load(weights, reader="pycaffe"), bridge.load(weights)
    for a, b in zip(ours, theirs, strict=True):
        assert all(np.array_equal(a.blobs[role], b.blobs[role]) for role in b.blobs)


@pytest.mark.caffe
@pytest.mark.parametrize("weights", ["caffemodel", "hdf5", "bytes"])
def test_ways_to_hand_over_weights(weights: str, tmp_path: Path) -> None:
    case = FIXTURES / "golden" / "net_siamese_shared"
    given: Any = weights_of(case)
    if weights == "hdf5":
        given = FIXTURES / "hdf5" / "net_siamese_shared.caffemodel.h5"
    with pycaffe.Session((case / "deploy.prototxt").read_text(), weights_of(case)) as session:
        expected = [blob.numpy() for layer in session.params() for blob in layer.blobs]
    with pycaffe.Session(
        (case / "deploy.prototxt").read_text(), given.read_bytes() if weights == "bytes" else given
    ) as session:
        found = [blob.numpy() for layer in session.params() for blob in layer.blobs]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.caffe
def test_layers_that_the_weights_lack_are_uncovered() -> None:
    definition = FASHION / "deploy.prototxt"
    renamed = definition.read_text().replace('"fc8"', '"fc8_new"')
    with pycaffe.Session(renamed, weights_of(FASHION)) as session:
        layers = {layer.name: layer for layer in session.params()}
    assert layers["fc8_new"].uncovered == "its name is not among the weights"
    assert layers["fc8_new"].blobs == ()
    assert len(layers["conv1"].blobs) == 2


@pytest.mark.caffe
@pytest.mark.parametrize(
    ("prototxt", "error", "message"),
    [
        ('layer { name: "x" type: "Nope" top: "x" }', UnsupportedLayerError, "Unknown layer type: Nope"),
        ('layer { name: "x" type: "ReLU" nope_param { } }', UnsupportedLayerError, 'no field named "nope_param"'),
        ('layer { name: "x" type: "ReLU" bottom: "y" top: "x" }', ModelError, "Unknown bottom blob 'y'"),
        ('layer { name: 5 type: "ReLU" }', FormatError, "Error parsing text-format"),
    ],
)
def test_what_caffe_refuses(prototxt: str, error: type[BridgeError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        pycaffe.Session(prototxt)
    assert "\n" not in caught.value.args[0]
    assert "known types" not in caught.value.args[0]


@pytest.mark.caffe
def test_versions() -> None:
    assert set(pycaffe.versions()) == {"caffe", "numpy", "python"}
    assert readers.status("pycaffe", thorough=True).works


# -- one that misbehaves -----------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A python in which ``import caffe`` finds the stand-in."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv(child.VARIABLE, sys.executable)
    child.close_children()
    yield monkeypatch
    child.close_children()


def session(name: str, timeout: float = 30) -> pycaffe.Session:
    return pycaffe.Session(text(name), b"weights", timeout=timeout)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["good", "noise"])
def test_a_session(name: str) -> None:
    with session(name) as net:
        assert (net.name, net.inputs, net.outputs) == (name, {"data": (1, 2)}, ("ip",))
        assert net.layers == [("data", "Input"), ("ip", "InnerProduct"), ("relu", "ReLU")]
        data = np.array([[1, 2], [0, 1], [3, 4]], np.float32)
        assert net.forward({"data": data})["ip"].tolist() == [[0, 0], [0, 0], [4, 4]]
        seen = [tops["ip"][0, 0] for _, tops in net.forward_by_layer({"data": data[1:]}) if "ip" in tops]
        assert seen == [-2, 0]
        (weight, bias) = net.params()[1].blobs
        assert (weight.numpy().tolist(), bias.numpy().tolist()) == ([[1, 1], [1, 1]], [-3, -3])


@pytest.mark.usefixtures("fake")
def test_half_covered_layer() -> None:
    with session("half") as net:
        assert net.params()[1].uncovered


@pytest.mark.usefixtures("fake")
def test_names_that_are_not_the_nets() -> None:
    with session("good") as net:
        with pytest.raises(UsageError, match="the inputs are x, expected data"):
            net.forward({"x": np.ones(2)})
        with pytest.raises(UsageError, match="no blob 'fc8'"):
            net.forward({"data": np.ones((1, 2))}, ["fc8"])


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("abort", ModelError, r"^pycaffe: Caffe says: a == b \(1 vs. 2\) Nets differ$"),
        ("unparsable", FormatError, r"^pycaffe: Caffe says: Error parsing text-format: 1:2: Expected a word$"),
        ("raise", ModelError, r"^pycaffe: Caffe says: RuntimeError: Could not open file$"),
        ("quit", BridgeError, r"^pycaffe: Caffe ended with exit status 3"),
        ("hang", BridgeError, r"^pycaffe: no answer from Caffe within 3 s"),
    ],
)
def test_one_clear_line(name: str, error: type[BridgeError], message: str) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=message):
        session(name, timeout=3)
    assert time.monotonic() - start < 20
    with session("good") as net:
        assert net.outputs == ("ip",)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["abort later", "hang later"])
def test_other_sessions_survive_the_end_of_their_child(name: str) -> None:
    good, bad = session("good"), session(name, timeout=3)
    data = {"data": np.ones((1, 2), np.float32)}
    before = good.forward(data)["ip"]
    with pytest.raises(BridgeError):
        bad.forward(data)
    assert np.array_equal(good.forward(data)["ip"], before)


@pytest.mark.usefixtures("fake")
def test_one_child_serves_all_sessions() -> None:
    with session("good") as first, session("good") as second:
        assert first._child is second._child


@pytest.mark.usefixtures("fake")
def test_child_ends_when_its_stdin_does() -> None:
    net = session("good")
    net._child._requests.close()
    assert net._child._process.wait(10) == 0


@pytest.mark.parametrize("problem", ["broken", "slow"])
def test_caffe_that_cannot_be_imported(problem: str, fake: pytest.MonkeyPatch) -> None:
    fake.setenv("FAKE_CAFFE", problem)
    message = {"broken": "cannot import caffe: TypeError: Descriptors", "slow": "no answer from Caffe within 2 s"}
    with pytest.raises(MissingExtraError, match=message[problem]):
        session("good", timeout=2)


def test_python_without_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(child.VARIABLE, f"{shlex.quote(sys.executable)} -S")
    with pytest.raises(MissingExtraError, match=r"does not answer|cannot import"):
        session("good")


@pytest.mark.parametrize("command", ["cat", "true", "echo hello", "/nowhere/python"])
def test_commands_that_are_no_python(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(child.VARIABLE, command)
    with pytest.raises(MissingExtraError) as caught:
        session("good", timeout=20)
    assert command in caught.value.args[0]
    assert child.VARIABLE in caught.value.hint


def test_command_that_speaks_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(child.VARIABLE, f"""{shlex.quote(sys.executable)} -c 'print("hello " * 9)'""")
    with pytest.raises(MissingExtraError, match="does not speak as agreed"):
        session("good", timeout=20)


def test_command_line(fake: pytest.MonkeyPatch) -> None:
    fake.setenv(child.VARIABLE, f"env BRIDGE_NOTHING='a b' {shlex.quote(sys.executable)}")
    assert session("good").outputs == ("ip",)


def test_command_with_a_space_in_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my python"
    path.touch()
    assert child.command_of(str(path)) == (str(path),)


def test_nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert readers.status("pycaffe").problem == "no interpreter with Caffe is named"
    with pytest.raises(MissingExtraError, match="no interpreter with Caffe is named"):
        session("good")


def test_status_does_not_start_it(fake: pytest.MonkeyPatch) -> None:
    fake.setenv("FAKE_CAFFE", "broken")
    assert readers.status("pycaffe").works
    assert not readers.status("pycaffe", thorough=True).works


def test_modules_of_the_current_folder_are_not_imported(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "caffe.py").write_text("raise SystemExit(7)")
    fake.chdir(tmp_path)
    assert session("good").outputs == ("ip",)


@pytest.mark.usefixtures("fake")
def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    session("good").close()
    with pytest.raises(BridgeError):
        session("abort")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fake")
def test_layers_that_open_files_are_refused() -> None:
    data = text("good") + 'layer { name: "lmdb" type: "Data" top: "x" data_param { source: "/etc" } }'
    with pytest.raises(UnsupportedLayerError, match="layer 'lmdb' opens the file '/etc'"):
        pycaffe.Session(data)


@pytest.mark.usefixtures("fake")
def test_fields_that_caffe_cannot_parse_are_left_out() -> None:
    net = pycaffe.Session(text("good") + ' layer { name: "x" type: "Odd" 143: "\\012" odd_param { 7: 1 } }')
    assert "143" not in net._prototxt
    assert "7:" not in net._prototxt


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        pycaffe.read(weights_of(FASHION), prototxt=tmp_path / "nothing")
    with pytest.raises(UsageError, match="needs a prototxt"):
        pycaffe.read(weights_of(FASHION))


@pytest.mark.usefixtures("fake")
def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        pycaffe.Session(text("good"), tmp_path / "nothing")


# -- old interpreters --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8", "3.9"])
def test_worker_compiles(version: str, tmp_path: Path) -> None:
    python = _interpreter(version)
    copy = shutil.copy(WORKER, tmp_path)
    subprocess.run([python, "-m", "py_compile", copy], check=True)


def _interpreter(version: str) -> str:
    """A Python of that version, on PATH or of pyenv."""
    found = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    name = shutil.which(f"python{version}")
    for candidate in [*map(str, found), *([name] if name else [])]:
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    missing(f"python{version}", f"no Python {version} is installed")
    raise AssertionError


def test_verify_finds_caffe_by_the_option_alone(fake: pytest.MonkeyPatch) -> None:
    """The reader and the engine are chosen because the option names an interpreter, not because a variable does."""
    fake.delenv(child.VARIABLE)
    assert not readers.status("pycaffe").works
    assert readers.status("pycaffe", python=sys.executable).works
    assert "pycaffe" not in engines.available()
    assert "pycaffe" in engines.available({"pycaffe": {"python": sys.executable}})
