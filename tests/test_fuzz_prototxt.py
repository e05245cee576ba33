"""Damaged prototxts end in a net, or in one clear line."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest

from benchmarks import fuzz_prototxt as fuzz
from tests.conftest import need

pytestmark = pytest.mark.damage


def test_damaged_prototxts(tmp_path: Path) -> None:
    need("chainer")
    rng, models = random.Random(0), fuzz.seeds()
    for run in range(300):
        model, text = fuzz.damaged(rng, models)
        weights = model.weights if run % 3 else None
        assert fuzz.attempt(tmp_path, text, weights, look=run % 50 == 0) in fuzz.ALLOWED, text


def test_it_tells_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(work: object) -> str:
        monkeypatch.setattr(fuzz, "_stages", work)
        return fuzz.attempt(tmp_path, "", None, look=True)

    def broken(*_: object) -> str:
        raise ZeroDivisionError("oh")

    def warns(*_: object) -> str:
        warnings.warn("oh", RuntimeWarning, stacklevel=2)
        return "ends"

    def hangs(*_: object) -> str:
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    monkeypatch.setattr(fuzz, "MEMORY", 1 << 20)
    assert ends(broken) == "ZeroDivisionError (oh)"
    assert ends(warns) == "RuntimeWarning (oh)"
    assert ends(hangs) == "time"
    assert ends(lambda *_: str(bytearray(2 << 20)[:0])) == "memory (bytearray(b''))"
