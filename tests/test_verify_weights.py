"""`bridge verify` compares weights bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import FormatError
from bridge.schema import Blob, RawLayer, RawNet
from tests.conftest import need
from tests.test_verify import DEPLOY, WEIGHTS


@pytest.mark.slow
def test_finds_every_single_bit_changed_of_any_weight(tmp_path: Path) -> None:
    data = bytearray(WEIGHTS.read_bytes())
    blobs = [(layer.name, role, blob) for layer in bridge.load(WEIGHTS) for role, blob in layer.blobs.entries()]
    shares = np.array([blob.size for *_, blob in blobs]) / sum(blob.size for *_, blob in blobs)
    rng = np.random.default_rng(7)
    file = tmp_path / "changed.caffemodel"
    for _ in range(2000):
        layer, role, blob = blobs[rng.choice(len(blobs), p=shares)]
        value, bit = int(rng.integers(blob.size)), int(rng.integers(32))
        byte = blob.location.offset + 4 * value + bit // 8
        data[byte] ^= 1 << bit % 8
        file.write_bytes(data)
        data[byte] ^= 1 << bit % 8
        report = bridge.verify(WEIGHTS, against=file, engines=(), readers=(), checks=())
        (found,) = report.differences
        assert (found.layer, found.role) == (layer, role)
        assert found.index == tuple(int(i) for i in np.unravel_index(value, blob.shape))
        assert found.differing == 1


# -- weights -----------------------------------------------------------------------------------


def changed(tmp_path: Path, byte: int, bit: int = 0) -> Path:
    data = bytearray(WEIGHTS.read_bytes())
    data[byte] ^= 1 << bit
    file = tmp_path / "changed.caffemodel"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "caffemodel", "caffemodel.h5", "chainer.npz", "onnx"])
def test_every_file_that_the_tool_writes_is_comparable(tmp_path: Path, suffix: str) -> None:
    need(*{"caffemodel.h5": ["h5py"], "chainer.npz": ["chainer"]}.get(suffix, []))
    net, file = bridge.load(DEPLOY, WEIGHTS), tmp_path / f"net.{suffix}"
    if suffix == "onnx":
        bridge.export_onnx(net, file, check=False)
    else:
        bridge.save(net, file)
    report = bridge.verify(DEPLOY, WEIGHTS, against=file, engines=(), readers=())
    assert report.passed, str(report)
    assert report.weights[0].count("same") == 10
    back = bridge.verify(DEPLOY, file, against=WEIGHTS, engines=(), readers=())
    assert back.weights[0].count("same") == 10


def test_is_symmetric(tmp_path: Path) -> None:
    other = changed(tmp_path, 50000)
    there = bridge.verify(DEPLOY, WEIGHTS, against=other, engines=(), readers=()).differences
    back = bridge.verify(DEPLOY, other, against=WEIGHTS, engines=(), readers=()).differences
    assert [(d.layer, d.role, d.index, d.values, d.differing, d.ulps) for d in there] == [
        (d.layer, d.role, d.index, d.values[::-1], d.differing, d.ulps) for d in back
    ]
    assert len(there) == 1


def save_one(path: Path, weight: np.ndarray) -> Path:
    """A caffemodel of one inner product with that weight."""
    definition = prototxt.parse(
        'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" '
        f"inner_product_param {{ num_output: {len(weight)} bias_term: false }} }}"
    )
    raw = RawLayer("fc", "InnerProduct", definition.messages("layer")[0], (Blob.of(weight),))
    bridge.save(assemble(RawNet("one", (raw,), source="one"), definition), path)
    return path


def one_difference(tmp_path: Path, a: np.ndarray, b: np.ndarray) -> Any:
    files = save_one(tmp_path / "a.caffemodel", a), save_one(tmp_path / "b.caffemodel", b)
    report = bridge.verify(files[0], against=files[1], engines=(), readers=(), checks=())
    return report.weights[0].blobs[0]


def test_minus_zero_is_not_zero(tmp_path: Path) -> None:
    found = one_difference(tmp_path, np.float32([[1, 0.0]]), np.float32([[1, -0.0]]))
    assert str(found) == (
        "layer 'fc' (InnerProduct): blob 'weight' differs at [0, 1]: 0.0 against -0.0 (1 of 2 values, 1 ulp)"
    )


def test_a_nan_is_its_payload(tmp_path: Path) -> None:
    payloads = [np.array([[bits, 0]], np.uint32).view(np.float32) for bits in (0x7FC00001, 0x7FC00002)]
    found = one_difference(tmp_path, *payloads)
    assert "[0, 0]: nan (0x7fc00001) against nan (0x7fc00002) (1 of 2 values)" in str(found)
    assert one_difference(tmp_path, payloads[0], payloads[0]).status == "same"


def test_says_how_types_that_differ_were_compared(tmp_path: Path) -> None:
    third = np.array([[1 / 3]])
    found = one_difference(tmp_path, third, third.astype(np.float32))
    assert found.status == "same"
    assert found.why == "float64 against float32, compared as float32"
    assert one_difference(tmp_path, third, np.float32([[0.3]])).status == "different"


def test_a_blob_of_another_shape_is_different(tmp_path: Path) -> None:
    found = one_difference(tmp_path, np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))
    assert found.status == "different"
    assert found.why == "shape 2 x 3 against 3 x 2"


def test_a_layer_that_is_missing_is_different(tmp_path: Path) -> None:
    net = bridge.load(DEPLOY, WEIGHTS)
    bridge.save(net.replace(layers=tuple(layer for layer in net if layer.name != "fc6")), tmp_path / "less.npz")
    report = bridge.verify(WEIGHTS, against=tmp_path / "less.npz", engines=(), readers=(), checks=())
    blobs, layers = report.differences[:2], report.differences[2:]
    assert [(d.layer, d.role) for d in blobs] == [("fc6", "weight"), ("fc6", "bias")]
    assert f"layer 'fc6' differs: only {WEIGHTS} has it" in [str(part) for part in layers]
    assert "only in" in str(report.differences[0])


def test_a_layer_that_a_reader_does_not_cover_is_told(tmp_path: Path) -> None:
    need("chainer")
    text = 'layer { name: "p" type: "PReLU" bottom: "x" top: "y" }'
    definition = prototxt.parse(text)
    raw = RawLayer("p", "PReLU", definition.messages("layer")[0], (Blob.of(np.ones(3, np.float32)),))
    bridge.save(assemble(RawNet("p", (raw,), source="p"), definition), tmp_path / "p.caffemodel")
    report = bridge.verify(tmp_path / "p.caffemodel", readers=["protobuf", "caffefunction"], engines=())
    (blob,) = report.weights[0].blobs
    assert blob.status == "not compared"
    assert "CaffeFunction" in blob.why
    assert report.status == 2


def test_a_truncated_file_is_no_difference(tmp_path: Path) -> None:
    (tmp_path / "cut.caffemodel").write_bytes(WEIGHTS.read_bytes()[:100_000])
    with pytest.raises(FormatError, match="past the end of file"):
        bridge.verify(DEPLOY, WEIGHTS, against=tmp_path / "cut.caffemodel", engines=())


def test_a_layer_without_a_type_in_the_file_has_that_of_the_net() -> None:
    from bridge.verification.weights import Loaded, stored_parts

    net = bridge.load(DEPLOY, WEIGHTS)
    layers = tuple(
        RawLayer(layer.name, "", layer.definition, tuple(blob for _, blob in layer.blobs.entries()))
        for layer in net
        if layer.blobs
    )
    found = stored_parts(Loaded(RawNet("names only", layers), net, None))
    assert {part.layer: part.type for part in found.values()} == {
        layer.name: layer.type for layer in net if layer.blobs
    }
