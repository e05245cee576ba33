"""Exports of a caffemodel alone, with the net that it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from tests.conftest import need
from tests.encode import chunk, number, varint
from tests.test_export import CASE, DEPLOY, WEIGHTS, ends, layer_bytes
from tests.test_export_graph import run
from tests.test_golden import load

# ---- the caffemodel alone ------------------------------------------------------------------------------

INPUT = chunk(100, chunk(1, b"x") + chunk(2, b"Input") + chunk(4, b"x")
              + chunk(143, chunk(1, chunk(1, b"".join(map(varint, (1, 3, 6, 8)))))))  # fmt: skip


def test_the_net_inside_the_caffemodel_is_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = CASE["net_inplace"] / "weights.caffemodel"
    status, _, err = ends(capfd, weights, "-o", tmp_path / "alone.onnx", "--no-check", "--input", "data=2,3,12,12")
    assert status == 0, err
    need("onnxruntime")
    _, inputs, outputs = load(CASE["net_inplace"])
    for name, values in run(tmp_path / "alone.onnx", inputs).items():
        np.testing.assert_allclose(values, outputs[name], 1e-4, 1e-5)


def test_a_number_that_two_forks_use_is_told_by_the_type(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """143 is BVLC's input_param, and PSPNet's interp_param; both in one file."""
    need("onnxruntime")
    interp = layer_bytes("up", "Interp", bottom="x", more=chunk(143, number(1, 11) + number(2, 15)))
    (tmp_path / "net.caffemodel").write_bytes(INPUT + interp)
    status, _, err = ends(capfd, tmp_path / "net.caffemodel", "-o", tmp_path / "out.onnx")
    assert (status, err) == (0, "")
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 8)).astype(np.float32)
    up = run(tmp_path / "out.onnx", {"x": x})["up"]
    assert up.shape == (1, 3, 11, 15)
    np.testing.assert_allclose(up[:, :, ::2, ::2], x, 1e-5, 1e-6)


def test_a_forks_own_number_is_read_with_its_dialect_and_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """45 is SegNet's bn_param, which no other fork has; the dialect says so too."""
    need("chainer", "onnxruntime")
    blobs = [np.full((1, 3, 1, 1), value, np.float32) for value in (2, 5)]
    bn = layer_bytes("bn", "BN", *blobs, bottom="x", more=chunk(45, number(3, 1)))
    (tmp_path / "net.caffemodel").write_bytes(INPUT + bn)
    for given in ([], ["--dialect", "segnet"]):
        status, _, err = ends(capfd, tmp_path / "net.caffemodel", "-o", tmp_path / "out.onnx", *given)
        assert (status, err) == (0, "")
        need("onnxruntime")
        x = np.random.default_rng(0).standard_normal((1, 3, 6, 8)).astype(np.float32)
        np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})["bn"], 2 * x + 5, 1e-5, 1e-5)
    status, _, err = ends(capfd, tmp_path / "net.caffemodel", "-o", tmp_path / "out.onnx", "--dialect", "klingon")
    assert status == 2
    assert "no dialect 'klingon'" in err


def test_an_export_leaves_the_net_as_it_is(tmp_path: Path) -> None:
    net = bridge.load(DEPLOY, WEIGHTS)
    written = []
    for half in (False, True, False):
        bridge.export_onnx(net, tmp_path / "out.onnx", half=half, check=False)
        written.append((tmp_path / "out.onnx").read_bytes())
    assert written[0] == written[2] != written[1]
