"""The command line: what it prints, where, and with which status it ends."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bridge import cli
from bridge.cli import options
from bridge.cli.doctor import doctor
from bridge.cli.info import info
from bridge.errors import UsageError
from tests.conftest import ROOT
from tests.processes import ends

FASHION = ROOT / "fixtures" / "fashion"
MODEL = [str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")]
HOSTILE = 'name: "n\\033[31m\\n" layer { name: "x\\n\\033[2J" type: "No\\nsuch" bottom: "b\\n" top: "t\\r" }'


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    path = tmp_path / "net.prototxt"
    path.write_text(HOSTILE)
    return str(path)


def test_without_a_command_it_tells_what_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = ends(capfd)
    assert (status, out) == (2, "")
    assert err.startswith("Usage: bridge")
    assert all(command in err for command in cli.COMMANDS)


def test_names_from_files_cannot_steer_the_terminal(hostile: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = ends(capfd, "info", hostile)
    assert status == 0
    assert r"x\n\x1b[2J  No\nsuch" in out
    assert not set(out + err) & {"\x1b", "\r"}


@pytest.mark.parametrize("command", ["export -o out.onnx", "verify", "convert -o out.npz"])
def test_an_error_is_one_line_whatever_a_file_calls_its_layers(
    command: str, hostile: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, *rest = command.split()
    status, _, err = ends(capfd, name, hostile, *rest)
    lines = err.splitlines()
    assert status == 2
    assert len(lines) == 1 + lines[-1].startswith("  hint: ")
    assert "\x1b" not in err


def test_info_leaves_out_a_column_without_groups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "group" in ends(capfd, "info", *MODEL)[1]
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "r" type: "ReLU" bottom: "x" top: "x" }')
    assert "group" not in ends(capfd, "info", str(path))[1]


def test_a_misspelt_file_has_a_hint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.caffemodel").touch()
    status, _, err = ends(capfd, "info", str(tmp_path / "mode.caffemodel"))
    assert status == 2
    assert err.endswith("No such file or directory\n  hint: did you mean 'model.caffemodel'?\n")
    assert "hint" not in ends(capfd, "info", str(tmp_path / "nowhere.caffemodel"))[2]


def test_convert_needs_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = ends(capfd, "convert", MODEL[0], "-o", str(tmp_path / "out.npz"))
    assert status == 2
    assert err == f"bridge: {MODEL[0]}: holds no weights\n  hint: give the file of weights as well\n"
    assert not list(tmp_path.iterdir())


def test_doctor_keeps_in_one_piece_what_is_to_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRIDGE_PYCAFFE_PYTHON", raising=False)
    out = CliRunner().invoke(doctor, ["-v"]).output
    assert "pycaffe: " not in out
    assert "or\n      BRIDGE_PYCAFFE_PYTHON\n" in out
    assert "chainer.functions.loss.softmax_cross_entropy" in out


def test_doctor_prints_what_installs_a_package_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bridge.extras import pip
    from bridge.files import readers

    long = pip("chainer")
    lost = readers.Status("caffefunction", "caffemodel, through Chainer", "chainer is not installed", long)
    monkeypatch.setattr(readers, "available", lambda: [lost])
    assert f"\n      {long}\n" in ends(capfd, "doctor")[1]


def test_doctor_names_the_patches_and_keeps_the_reasons_for_those_who_ask(capfd: pytest.CaptureFixture[str]) -> None:
    (_, short, _), (_, long, _) = ends(capfd, "doctor"), ends(capfd, "doctor", "-v")
    assert "caffe-pb2" in short
    assert len(long.splitlines()) > len(short.splitlines()) + 30


def test_doctor_says_that_opencv_5_has_no_importer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cv2 = types.ModuleType("cv2")
    cv2.__spec__ = importlib.machinery.ModuleSpec("cv2", None)
    vars(cv2).update(dnn=types.ModuleType("cv2.dnn"), __version__="5.0.0")
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    found = json.loads(ends(capfd, "doctor", "--json")[1])["engines"]
    assert next(e["problem"] for e in found if e["name"] == "opencv") == "OpenCV 5.0.0 has no readNetFromCaffe"


def test_doctor_tells_machines_the_same() -> None:
    found = json.loads(CliRunner().invoke(doctor, ["--json"]).output)
    assert {"packages", "readers", "engines", "devices", "patches"} < set(found)


def test_json_takes_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    options.write_json({"file": "\udcff"}, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == {"file": "\udcff"}


def test_info_tells_machines_of_a_grouped_weight() -> None:
    found = json.loads(CliRunner().invoke(info, [*MODEL, "--json"]).output)
    layer = next(layer for layer in found["layers"] if layer["name"] == "conv2")
    assert (layer["group"], layer["blobs"][0]["shape"]) == (2, [32, 8, 5, 5])


@pytest.mark.parametrize("second", [MODEL, MODEL[::-1]], ids=["prototxt first", "weights first"])
def test_a_second_model_is_files_too(second: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    silent = ("--readers", "none", "--engines", "none")
    status, out, err = ends(capfd, "verify", *MODEL, "--against", *second, *silent)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("PASSED: 10 blobs the same")
    assert ends(capfd, "verify", "--against", MODEL[1], *silent, *MODEL)[0] == 0


def test_what_a_writer_leaves_out_is_a_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deploy.prototxt"
    path.write_text(Path(MODEL[0]).read_text().replace("num_output: 10", "num_output: 10 our_own: 1"))
    status, _, err = ends(capfd, "convert", str(path), MODEL[1], "-o", str(tmp_path / "out.caffemodel"))
    where = f"{MODEL[1]}: layer 'fc8' (InnerProduct)"
    assert status == 0
    unwritten, unread = err.splitlines()
    assert (
        unwritten == f"note: {where}: 'inner_product_param.our_own' is not written, as no known caffe.proto has it so"
    )
    assert "'inner_product_param.our_own: 1' is in no known caffe.proto" in unread


def test_warnings_of_other_packages_stay_unsaid(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine() -> None:
        np.float32(1e38) * np.float32(1e38)
        warnings.warn_explicit("old", DeprecationWarning, "chainer.py", 1, "chainer")
        warnings.warn_explicit("old", UserWarning, "chainer.py", 1, "chainer")
        raise UsageError("x" * 5000, hint="y" * 3000)

    monkeypatch.setattr("bridge.cli.doctor.examine", examine)
    status, out, err = ends(capfd, "doctor")
    assert (status, out) == (2, "")
    assert (
        err == f"bridge: {'x' * 2000} ... (3,000 more characters)\n  hint: {'y' * 2000} ... (1,000 more characters)\n"
    )


def test_a_defect_of_ours_is_no_difference(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("bridge.cli.info.describe", broken)
    status, _, err = ends(capfd, "info", *MODEL)
    assert status == 2
    assert "unexpected ZeroDivisionError: by zero" in err


@pytest.mark.parametrize("command", [("verify",), ("export", "-o", "x.onnx")], ids=lambda command: command[0])
def test_a_negative_seed_is_refused(command: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = ends(capfd, *command, *MODEL, "--seed", "-1")
    assert status == 2
    assert "seed" in err
