"""The fixtures are the bytes that SHA256SUMS names, all of them and no others, scripts aside."""

from __future__ import annotations

import hashlib

from tests.conftest import FIXTURES, GOLDEN


def test_digests():
    lines = (FIXTURES / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}
    found = {
        f"./{path.relative_to(FIXTURES).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FIXTURES.rglob("*")
        if path.is_file() and path.name not in {"README.md", "SHA256SUMS"} and path.suffix not in {".py", ".pyc"}
    }
    assert found == listed


def test_every_golden_case_is_whole():
    assert len(GOLDEN) >= 118
    for case in (FIXTURES / "golden").iterdir():
        assert {"deploy.prototxt", "weights.caffemodel", "io.npz"} <= {path.name for path in case.iterdir()}
