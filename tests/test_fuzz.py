"""The fuzzer of every format, a little of it at a time, and the files that it and others found."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks import fuzz, fuzz_formats
from bridge.errors import FormatError
from tests.conftest import need

pytestmark = pytest.mark.damage

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
NEEDS = {
    "hdf5": ["h5py"],
    "hdf5-data": ["h5py"],
    "solverstate-hdf5": ["h5py"],
    "image": ["PIL"],
    "picture": ["PIL"],
    "windows": ["PIL"],
    "lmdb": ["lmdb", "PIL"],
    "leveldb": ["plyvel", "PIL"],
}


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files_end_in_what_they_hold_or_in_an_error(name: str, tmp_path: Path) -> None:
    need(*NEEDS.get(name, []))
    found = fuzz.Fuzz(name, 300, 0, tmp_path / "kept")
    found.run()
    assert set(found.outcomes) <= fuzz.ALLOWED, str(found)
    assert {"read", "FormatError"} <= set(found.outcomes), "nothing was damaged, or everything beyond use"


def test_the_same_run_is_the_same_file(tmp_path: Path) -> None:
    a, b = (fuzz.Fuzz("safetensors", 5, seed, tmp_path) for seed in (3, 3))
    assert [a.data(run) for run in range(5)] == [b.data(run) for run in range(5)]
    assert len({a.data(run) for run in range(5)}) > 1


@pytest.mark.parametrize(
    ("does", "outcome"),
    [
        (lambda path: 1 // 0, "ZeroDivisionError (integer division or modulo by zero)"),
        (lambda path: os.kill(os.getpid(), 11), "ended by signal 11"),
        (lambda path: time.sleep(60), "hangs"),
        (lambda path: bytearray(os.urandom(1) * (80 << 20)), "memory (read)"),
    ],
)
def test_the_fuzzer_names_what_it_finds(
    does: object, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "HANG", 1.0)
    monkeypatch.setitem(fuzz.FORMATS, "made", fuzz_formats.Format(".bin", lambda: [b"a" * 100], does))  # type: ignore[arg-type]
    found = fuzz.Fuzz("made", 2, 0, tmp_path / "kept")
    found.run()
    assert found.outcomes == {outcome: 2}
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("path", CORPUS, ids=[path.name for path in CORPUS])
def test_what_was_found_stays_found(path: Path) -> None:
    uses = {".img": fuzz_formats.image, ".npz": fuzz_formats.recording}
    need(*{".img": ["PIL"], ".h5": ["h5py"]}.get(path.suffix, []))
    if path.suffix == ".binaryproto":
        fuzz_formats.mean(path)  # of no values: nothing is wrong with it
        return
    with pytest.raises(FormatError):
        uses.get(path.suffix, fuzz_formats.load)(path)
