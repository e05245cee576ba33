"""What differs on Windows and macOS, as far as it can be faked here."""

from __future__ import annotations

import builtins
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.cli import manners, streams
from bridge.files import atomic as atomic_files
from bridge.files.atomic import atomic
from bridge.limits import budget
from tests.conftest import FASHION, ROOT, need

MODEL = [str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system where a folder cannot be opened, and no open file renamed or removed."""
    real_open, real_replace = os.open, os.replace

    def held(path: Any) -> bool:
        wanted = os.path.realpath(path)
        links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
        return any(os.path.exists(link) and os.path.realpath(link) == wanted for link in links)

    def opened(path: Any, *given: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *given, **named)

    def replaced(source: Any, target: Any, **named: Any) -> None:
        if held(source):
            raise PermissionError(32, "The process cannot access the file because it is being used by another process")
        real_replace(source, target, **named)

    monkeypatch.setattr(atomic_files, "WINDOWS", True)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.delattr(os, "fdatasync", raising=False)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "replace", replaced)


@pytest.mark.skipif(sys.platform != "linux", reason="tells open files by /proc")
@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_written_whole_or_not_at_all_on_windows(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with atomic(path, durable=durable) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), atomic(path, durable=durable) as file:
        file.write("half")  # type: ignore[arg-type]
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="tells open files by /proc")
@pytest.mark.usefixtures("windows")
def test_models_are_written_on_windows(tmp_path: Path) -> None:
    net = bridge.load(*MODEL)
    bridge.save(net, tmp_path / "out.caffemodel")
    bridge.export_onnx(net, tmp_path / "out.onnx", check=False)
    assert bridge.verify(tmp_path / "out.caffemodel", against=MODEL[1], readers=(), engines=()).passed
    assert {path.name for path in tmp_path.iterdir()} == {"out.caffemodel", "out.onnx"}


def test_a_graph_runs_where_pipes_cannot_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has ``select`` for sockets alone, and no non-blocking pipes."""
    need("onnxruntime")
    import selectors

    from bridge.engines.sandbox import Sandbox

    def refuse(*_: Any) -> None:
        raise OSError(10038, "an operation was attempted on something that is not a socket")

    monkeypatch.setattr(selectors, "DefaultSelector", refuse)
    monkeypatch.setattr(os, "set_blocking", refuse)
    bridge.export_onnx(bridge.load(*MODEL), tmp_path / "net.onnx", check=False)
    model = (tmp_path / "net.onnx").read_bytes()
    threads = threading.active_count()
    with Sandbox(60) as runtime, np.load(FASHION / "io.npz") as recorded:
        for _ in range(2):
            found = runtime.run(model, ["prob"], {"data": recorded["in:data"]}, FASHION)["prob"]
            np.testing.assert_allclose(found, recorded["out:prob"], 1e-4, 1e-5)
        assert threading.active_count() == threads


def test_a_system_without_resource_says_no_memory_and_binds_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name == "resource":
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    budget.bind_process()
    manners.VOICE.reset()
    manners.VOICE.level = 1
    manners.VOICE.end()
    manners.VOICE.reset()
    assert capfd.readouterr().err.strip().endswith("done")


def test_install_lines_are_for_the_shells_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither cmd nor PowerShell knows single quotes as a shell does, or ``NAME=value`` before a command."""
    from bridge import extras

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(extras, "_source", lambda: "C:\\my clone")
    assert extras.pip("hdf5") == 'python -m pip install "C:\\my clone[hdf5]"'
    monkeypatch.setattr(extras, "_source", lambda: "C:\\clone")
    line = extras.pip("chainer")
    assert line.startswith('cmd /c "set PIP_CONSTRAINT=file:///')
    assert line.endswith('&& python -m pip install C:\\clone[chainer]"')
    assert "'" not in line


def test_a_clone_on_a_drive_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The URL of a folder on Windows, file:///C:/clone, has a path that begins with a slash."""
    import types
    import urllib.request

    from bridge import extras

    installed = types.SimpleNamespace(read_text=lambda _: '{"url": "file:///C:/my%20clone"}')
    monkeypatch.setattr(extras.importlib.metadata, "distribution", lambda _: installed)
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "bridge" / "extras.py"))
    monkeypatch.setattr(urllib.request, "url2pathname", {"/C:/my%20clone": str(tmp_path)}.__getitem__)
    assert extras._source.__wrapped__() == str(tmp_path)


def test_a_console_of_few_letters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console of Windows may know the letters of cp1252 only."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(streams, "_watch_maps", lambda: None)
    streams.prepare()
    print("\u5377\u79ef \u00e9")
    console.flush()
    assert console.buffer.getvalue() == b"\\u5377\\u79ef \xe9\n"  # type: ignore[attr-defined]


def test_no_two_files_differ_in_case_alone() -> None:
    """Such a pair is one file on macOS and Windows."""
    folders = ("bridge", "backends", "docs", "tests", "fixtures", "benchmarks", ".github", ".ci", "constraints")
    names = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*")]
    assert len({name.lower() for name in names}) == len(names)
    reserved = {"con", "prn", "aux", "nul", *(f"{word}{digit}" for word in ("com", "lpt") for digit in range(10))}
    assert not [name for name in names if Path(name).stem.lower() in reserved or set(name) & set('<>:"|?*\\')]


def test_text_files_are_read_with_an_encoding() -> None:
    """Windows would read them as cp1252."""
    import ast

    faults = []
    for folder in ("bridge", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.Call(func=ast.Attribute(attr="read_text" | "write_text"), args=args, keywords=keywords):
                        if not args and not any(word.arg == "encoding" for word in keywords):
                            faults.append(f"{path}:{node.lineno}")
    assert not faults
