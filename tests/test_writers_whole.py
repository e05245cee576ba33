"""A written file appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

import bridge
from bridge.errors import ModelError, OutputError, UsageError
from bridge.files import atomic as files
from bridge.files import writers
from bridge.files.writers import hdf5
from tests.conftest import ROOT
from tests.test_writers import DEPLOY, MODEL, SUFFIXES, needs, same

# -- whole or not at all -----------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that is there already, alone in its folder."""
    path = tmp_path / "folder" / "net.npz"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def untouched(target: Path) -> None:
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_bytes() == b"old"


def fails(error: BaseException) -> Callable[[IO[bytes]], None]:
    def block(stream: IO[bytes]) -> None:
        stream.write(b"half of it" * 10000)
        raise error

    return block


@pytest.fixture(params=["nameless", "named"])
def _draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's nameless files and, as on other systems, without."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


@pytest.mark.usefixtures("_draft")
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ModelError("odd"), ModelError),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
def test_a_failure_leaves_the_old_file(error: BaseException, raised: type[BaseException], target: Path) -> None:
    with pytest.raises(raised), writers.atomic(target) as stream:
        fails(error)(stream)
    untouched(target)


@pytest.mark.usefixtures("_draft")
def test_success_leaves_the_new_file(target: Path) -> None:
    with writers.atomic(target) as stream:
        stream.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.usefixtures("_draft")
def test_failure_at_the_last_step(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "replace", refuse)
    with (
        pytest.raises(OutputError, match=r"net.npz: cannot be written: Operation not permitted"),
        writers.atomic(target),
    ):
        pass
    untouched(target)


@pytest.mark.usefixtures("_draft")
@pytest.mark.parametrize(("owner", "name", "fail"), [(os, "link", False), (files._Syncer, "stop", True)])
def test_an_interrupt_at_the_last_step_leaves_no_litter(
    owner: Any, name: str, fail: bool, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = getattr(owner, name)

    def then_interrupt(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()  # once
        call(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, then_interrupt)
    with contextlib.suppress(KeyboardInterrupt, ModelError), writers.atomic(target) as stream:
        stream.write(b"old")
        if fail:
            raise ModelError("odd")
    untouched(target)


def test_a_failed_sync_is_a_failed_write(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OutputError, match="Input/output error"), writers.atomic(target):
        time.sleep(0.2)
    untouched(target)


@pytest.mark.parametrize("room", [100, 3_000, 50_000, 140_000])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk(suffix: str, room: int, tmp_path: Path) -> None:
    needs(suffix)
    net = bridge.load(MODEL, DEPLOY)
    path = tmp_path / "folder" / f"net{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            bridge.save(net, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    untouched(path)


class Failing(io.BytesIO):
    """A stream of which the call ``at`` of one method does something first."""

    def __init__(self, method: str, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.method, self.left, self.act = method, at, act

    def _count(self, method: str) -> None:
        self.left -= method == self.method
        if self.left == 0:
            self.left = -1
            self.act()

    def seek(self, *place: int) -> int:
        self._count("seek")
        return super().seek(*place)

    def write(self, data: Any) -> int:
        self._count("write")
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self._count("truncate")
        return super().truncate(size)

    def flush(self) -> None:
        self._count("flush")
        super().flush()


CALLS = pytest.mark.parametrize(
    ("method", "at"), [("seek", 1), ("seek", 9), ("write", 1), ("write", 5), ("truncate", 1), ("flush", 1)]
)


@CALLS
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), SystemExit(3), ValueError("odd")]
)
def test_whatever_happens_in_a_call_from_hdf5_comes_out_as_it_is(method: str, at: int, error: BaseException) -> None:
    needs(".caffemodel.h5")

    def act() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        hdf5.write(bridge.load(MODEL, DEPLOY), Failing(method, at, act))
    assert caught.value is error


@CALLS
def test_an_interrupt_within_hdf5_ends_the_writing(method: str, at: int) -> None:
    needs(".caffemodel.h5")
    stream = Failing(method, at, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        hdf5.write(bridge.load(MODEL, DEPLOY), stream)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no nameless files")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_no_litter(number: signal.Signals, target: Path) -> None:
    code = (
        "import sys, time; from bridge.files.writers import atomic\n"
        "with atomic(sys.argv[1]) as stream:\n"
        "    stream.write(b'x' * 100000); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
    assert process.returncode != 0
    untouched(target)


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
def test_a_file_may_be_written_over_itself(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    bridge.save(bridge.load(MODEL, DEPLOY), path)
    before = path.read_bytes()
    net = bridge.load(path)
    bridge.save(net, path)
    assert path.read_bytes() == before
    same(bridge.load(path), net)


def test_values_come_from_the_file_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(MODEL.read_bytes())
    net = bridge.load(path)
    replacement = tmp_path / "other"
    replacement.write_bytes(b"\0" * MODEL.stat().st_size)
    replacement.replace(path)
    bridge.save(net, tmp_path / "net.safetensors")
    same(bridge.load(tmp_path / "net.safetensors"), bridge.load(MODEL))


def test_a_link_stays_a_link(target: Path) -> None:
    link = target.parent.parent / "link.npz"
    link.symlink_to(target)
    bridge.save(bridge.load(MODEL, DEPLOY), link)
    assert link.is_symlink()
    assert target.stat().st_size > 100_000


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    net = bridge.load(MODEL, DEPLOY)
    for path, problem in [
        (tmp_path / "nowhere" / "a.npz", "No such file or directory"),
        (tmp_path, "is a folder"),
        (Path(os.devnull), "is not a regular file"),
    ]:
        with pytest.raises(OutputError, match=problem) as caught:
            bridge.save(net, path, "npz")
        assert str(path) in str(caught.value)
    with pytest.raises(UsageError, match="the name of the output is empty"):
        bridge.save(net, "", "npz")
