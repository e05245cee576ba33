"""Event files for TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.finetuning import events
from tests.conftest import need
from tests.finetuning import config, log_of, run, stopped, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


class Writer:
    """Stands for tensorboardX's writer."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.seen: list[tuple[str, float, int]] = []
        made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen.append((name, value, step))

    def close(self) -> None:
        self.closed = True


made: list[Writer] = []


def test_every_number_of_the_log_goes_to_the_event_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run writes from the step after the snapshot, and what was behind it is dropped."""
    made.clear()
    spec = SimpleNamespace(SummaryWriter=Writer, __spec__=object())
    monkeypatch.setitem(sys.modules, "tensorboardX", spec)  # type: ignore[arg-type]
    settings = config(tmp_path, snapshot_every=3)
    stopped(settings, 5)
    trained(config(tmp_path, snapshot_every=3, resume=True))
    first, second = made
    assert first.closed
    assert second.closed
    assert (first.folder, first.purge_step, second.purge_step) == (str(tmp_path / "run" / "tensorboard"), None, 3)
    expected = [
        (name, value, record["iteration"])
        for record in log_of(tmp_path / "run")
        for name, value in record.items()
        if name not in ("iteration", "epoch")
    ]
    seen = [*(entry for entry in first.seen if entry[2] < 3), *second.seen]
    assert seen == expected


def test_tensorboardx_writes_them(tmp_path: Path) -> None:
    need("tensorboardX")
    made: Any = run(config(tmp_path, epochs=1))
    (file,) = (made.config.folder / events.EVENTS).iterdir()
    assert b"validation_loss" in file.read_bytes()


def test_without_the_package_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PACKAGE", "no_such_package")
    trained(config(tmp_path, epochs=1))
    assert not (tmp_path / "run" / events.EVENTS).exists()
