"""What a caffemodel holds comes back to the byte from every container that can hold it."""

from __future__ import annotations

import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.proto.encode import encode_layer
from bridge.schema.message import Message
from tests import encode
from tests.conftest import need
from tests.strategies import wire

pytestmark = pytest.mark.damage

CONTAINERS = (".caffemodel", ".npz", ".safetensors")


def through(data: bytes, *suffixes: str) -> bytes:
    """A caffemodel, converted to each container in turn and back; a warning fails."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / "a.caffemodel"
        path.write_bytes(data)
        for place, suffix in enumerate((*suffixes, ".caffemodel")):
            made = Path(folder) / f"b{place}{suffix}"
            bridge.save(bridge.load(path), made)
            path = made
        return path.read_bytes()


def one_layer(kind: bytes, fields: bytes, *blobs: bytes) -> bytes:
    layer = encode.chunk(1, b"c") + encode.chunk(2, kind) + fields + b"".join(encode.chunk(7, b) for b in blobs)
    return encode.chunk(1, b"n") + encode.chunk(100, layer)


@pytest.mark.parametrize("suffix", CONTAINERS)
@given(data=st.data())
def test_fields_come_back_to_the_byte(suffix: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([b"Odd", b"Convolution", b"Power", b"Eltwise", b"PriorBox"]))
    model = one_layer(kind, data.draw(wire.message("LayerParameter")))
    model += b"".join(data.draw(st.lists(wire.unknown(), max_size=2)))
    assert wire.by_number(through(model, suffix), "NetParameter") == wire.by_number(model, "NetParameter")


@pytest.mark.parametrize("bits", [0x7FA00001, 0xFFC00000, 0x7FC00000, 0x80000000])
@pytest.mark.parametrize("suffix", [*CONTAINERS, ".h5"])
@pytest.mark.parametrize("dtype", ["<u4", "<u8", "<u2"])
def test_bits_of_values_come_back(dtype: str, suffix: str, bits: int) -> None:
    if suffix == ".h5":
        need("h5py")
    values = np.array([bits, 1, bits], np.uint32).astype(dtype)
    if dtype == "<u2":
        values[[0, 2]] = bits >> 16 & 0x8000 | 0x7C00 | (1 if bits & 0xFFFFF else bits >> 13 & 0x3FF)
    elif dtype == "<u8":
        values[[0, 2]] = (bits >> 31 << 63) | 0x7FF << 52 | (bits & 0x7FFFFF)
    field = {"<u4": encode.chunk(5, values.tobytes()), "<u8": encode.chunk(8, values.tobytes())}.get(dtype)
    blob = encode.chunk(7, encode.chunk(1, encode.varint(3)))
    blob += field or encode.number(10, 2) + encode.chunk(12, values.tobytes())
    model = one_layer(b"Odd", b"", blob)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.caffemodel").write_bytes(model)
        bridge.save(bridge.load(Path(folder) / "a.caffemodel"), Path(folder) / f"b{suffix}")
        (layer,) = bridge.load(Path(folder) / f"b{suffix}")
    (found,) = layer.blobs.values()
    expected = values.view(dtype.replace("u", "f"))
    assert found.astype(expected.dtype).tobytes() == expected.tobytes()


def test_a_nan_in_text_keeps_its_bits() -> None:
    values = [struct.pack("<I", bits) for bits in (0x7FC00000, 0xFFC00000, 0x7FA00001, 0xFF800001)]
    (read,) = through_text(b"".join(encode.tag(5, 5) + value for value in values))
    assert prototxt.format(read).count("loss_weight: nan\n") == 1
    assert "loss_weight: nan # 0x7ff4000020000000\n" in prototxt.format(read)
    again = encode_layer(prototxt.parse(prototxt.format(read)), "bvlc", pytest.fail)
    assert [part for number, part in wire.fields_of(again) if number == 5] == [b"\x2d" + value for value in values]
    assert prototxt.parse("x: nan # 0x3ff0000000000000\n").get("x") != 1  # the comment of a number that is none


def through_text(fields: bytes) -> list[Message]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.caffemodel").write_bytes(one_layer(b"Odd", fields))
        return [layer.definition for layer in bridge.load(Path(folder) / "a.caffemodel")]


def test_a_number_in_the_wire_type_of_a_run_is_kept_as_bytes() -> None:
    # Field 3 of a convolution_param, pad, is repeated; field 1, num_output, and field 5, group, are not.
    model = one_layer(b"Odd", encode.chunk(106, encode.chunk(1, b"\x02\x03") + encode.chunk(5, b"")))
    assert through(model, ".npz") == model


def test_fields_that_forks_add_to_a_net_are_written() -> None:
    model = one_layer(b"Odd", b"") + encode.chunk(9, b"CAFFE") + encode.number(18, 5)
    assert wire.by_number(through(model, ".npz"), "NetParameter") == wire.by_number(model, "NetParameter")


def test_a_negative_zero_comes_back_from_onnx(tmp_path: Path) -> None:
    need("onnxruntime")
    shape = encode.chunk(143, encode.chunk(1, encode.number(1, 1) + encode.number(1, 3)))
    model = encode.chunk(100, encode.chunk(1, b"d") + encode.chunk(2, b"Input") + encode.chunk(4, b"d") + shape)
    power = encode.chunk(122, encode.tag(2, 5) + struct.pack("<f", 0.1) + encode.tag(3, 5) + struct.pack("<f", -0.0))
    wires = encode.chunk(3, b"d") + encode.chunk(4, b"p")
    model += encode.chunk(100, encode.chunk(1, b"p") + encode.chunk(2, b"Power") + wires + power)
    (tmp_path / "a.caffemodel").write_bytes(model)
    bridge.export_onnx(bridge.load(tmp_path / "a.caffemodel"), tmp_path / "a.onnx")
    bridge.save(bridge.load(tmp_path / "a.onnx"), tmp_path / "b.caffemodel")
    assert power in (tmp_path / "b.caffemodel").read_bytes()
