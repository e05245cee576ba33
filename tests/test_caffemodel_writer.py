"""Written caffemodels: we and the real Caffe read them, and nothing is lost on the way."""

from __future__ import annotations

import io
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridge
from backends.protobuf import read
from bridge import cli
from bridge.caffe_files.proto import caffe_pb2
from bridge.caffe_files.prototxt import parse
from bridge.files.writers import caffemodel
from bridge.schema import Blob, Blobs, Net, Opaque
from bridge.schema.message import Message
from tests import encode
from tests.conftest import FASHION, GOLDEN
from tests.encode import chunk, net
from tests.strategies import files as strategies

FORKS = ("act_relu6", "detection_output", "fork_", "normalize", "permute", "prior_box")


def written(source: Net, path: Path, **options: bool | str) -> Path:
    with open(path, "wb") as stream:
        caffemodel.write(source, stream, **options)  # type: ignore[arg-type]
    return path


def opaque(text: str, *arrays: np.ndarray) -> Net:
    """A net of one layer of a type that nobody knows."""
    definition = parse(text)
    blobs = Blobs({f"blob{i}": Blob.of(array) for i, array in enumerate(arrays)})
    return Net("n", (Opaque(name=definition.text("name"), type="T", definition=definition, blobs=blobs),))


@pytest.mark.parametrize("case", [*GOLDEN, FASHION], ids=lambda path: path.name)
def test_written_net_is_the_net(tmp_path: Path, case: Path) -> None:
    (weights,) = case.glob("*.caffemodel")
    source = bridge.load(weights)
    again = bridge.load(written(source, tmp_path / "net.caffemodel"))
    assert again.name == source.name
    assert again.definition == source.definition
    assert [layer.definition for layer in again] == [layer.definition for layer in source]
    for old, new in zip(source, again, strict=True):
        assert list(old.blobs) == list(new.blobs)
        for role in old.blobs:
            np.testing.assert_array_equal(new.blobs[role], old.blobs[role], strict=True)


@given(layers=strategies.stored_nets(), generation=st.sampled_from(["V0", "V1", "V2"]), half=st.booleans())
def test_any_net_in_any_encoding(
    tmp_path_factory: pytest.TempPathFactory, layers: strategies.StoredNet, generation: str, half: bool
) -> None:
    folder = tmp_path_factory.mktemp("written")
    data = net([(layer, [b.data for b in blobs]) for layer, blobs in layers], generation, Message("", name="n"))
    (folder / "old").write_bytes(data)
    source = bridge.load(folder / "old")
    again = bridge.load(written(source, folder / "new", half=half))
    assert [layer.definition for layer in again] == [layer for layer, _ in layers]
    for new, (_, blobs) in zip(again, layers, strict=True):
        for (_, found), drawn in zip(new.blobs.entries(), blobs, strict=True):
            half_kept = half or drawn.expected.dtype != np.float16
            assert found.dtype == (drawn.expected.dtype if half_kept else np.float32)
            np.testing.assert_array_equal(found.numpy().ravel(), drawn.expected.ravel())


def test_google_protobuf_reads_it(tmp_path: Path) -> None:
    single, double = np.float32([[1, 2, 3]]), np.float64([0.1, 0.2])
    path = written(opaque('name: "l" type: "T" bottom: "x"', single, double), tmp_path / "net.caffemodel")
    message = caffe_pb2.NetParameter.FromString(path.read_bytes())
    (layer,) = message.layer
    assert (message.name, layer.name, layer.type, list(layer.bottom)) == ("n", "l", "T", ["x"])
    assert list(layer.blobs[0].shape.dim) == [1, 3]
    assert list(layer.blobs[0].data) == [1, 2, 3]
    assert list(layer.blobs[1].double_data) == [0.1, 0.2]


def test_half_is_kept_on_request(tmp_path: Path) -> None:
    values = np.arange(5, dtype=np.float16)
    for half, dtype in ((True, np.float16), (False, np.float32)):
        path = written(opaque('name: "l" type: "T"', values), tmp_path / "net.caffemodel", half=half)
        np.testing.assert_array_equal(read(path).layers[0].blobs[0].numpy(), values.astype(dtype), strict=True)


def bn_layer(number: int) -> bytes:
    """A net of one BN with ``bn_param`` under a fork's number, and float16 values."""
    blob = chunk(7, encode.number(1, 2)) + encode.number(10, 2) + chunk(12, np.ones(2, np.float16).tobytes())
    return chunk(100, chunk(1, b"b") + chunk(2, b"BN") + chunk(7, blob) + chunk(number, encode.number(6, 2)))


@pytest.mark.parametrize(
    ("options", "number", "dtype"),
    [
        ({}, 152, np.float32),
        ({"half": True}, 152, np.float16),
        ({"dialect": "pspnet_tsn"}, 137, np.float32),
        ({"dialect": "intel", "half": True}, 1137, np.float16),
    ],
)
def test_saving_and_the_command_take_the_writers_options(
    options: dict[str, Any], number: int, dtype: Any, tmp_path: Path
) -> None:
    old, new, same = tmp_path / "old", tmp_path / "new.caffemodel", tmp_path / "same.caffemodel"
    old.write_bytes(bn_layer(152))
    bridge.save(bridge.load(old), new, **options)
    assert chunk(number, encode.number(6, 2)) in new.read_bytes()
    assert read(new).layers[0].blobs[0].dtype == dtype
    convert(old, same, *["--half"] * options.get("half", False), f"--to-dialect={options.get('dialect', 'bvlc')}")
    assert same.read_bytes() == new.read_bytes()


def test_a_dialect_that_was_read_is_written(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new.caffemodel"
    old.write_bytes(bn_layer(137))
    convert(old, new, "--dialect", "pspnet_tsn")
    assert chunk(137, encode.number(6, 2)) in new.read_bytes()
    convert(old, tmp_path / "new.npz", "--dialect", "pspnet_tsn")
    with pytest.raises(SystemExit) as left:
        cli.main(["convert", str(old), "-o", str(tmp_path / "other.npz"), "--half"])
    assert left.value.code == 2


def convert(source: Path, target: Path, *arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["convert", str(source), "-o", str(target), *arguments])
    assert left.value.code == 0


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 1, 1, 4), (1, 1, 2, 3), (1, 4, 1, 1), (1, 1, 1, 2, 2)])
def test_shapes_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = written(opaque('name: "l" type: "T"', np.ones(shape, np.float32)), tmp_path / "net.caffemodel")
    assert read(path).layers[0].blobs[0].shape == shape


def test_fields_of_forks_and_unknown_numbers_come_back(tmp_path: Path) -> None:
    layers = [
        chunk(1, b"a") + chunk(2, b"Interp") + chunk(143, encode.number(1, 60)),
        chunk(1, b"b") + chunk(2, b"BN") + chunk(152, encode.number(6, 2)),
        chunk(1, b"c") + chunk(2, b"T") + chunk(999, b"\x00\xff") + encode.number(998, 5),
    ]
    (tmp_path / "old").write_bytes(b"".join(chunk(100, layer) for layer in layers))
    path = written(bridge.load(tmp_path / "old"), tmp_path / "new")
    definitions = [layer.definition for layer in read(path).layers]
    assert definitions == [layer.definition for layer in read(tmp_path / "old").layers]
    assert definitions[0].message("interp_param") == parse("height: 60")
    assert definitions[1].message("bn_param") == parse("engine: CUDNN")


def test_field_that_no_schema_has_is_told(tmp_path: Path) -> None:
    source = opaque('name: "l" type: "T" flux_param { capacity: 1 } lrn_param { k: 2 size: 3 }', np.ones(2, "f4"))
    with pytest.warns(UserWarning, match="is not written, as no known") as told:
        path = written(source, tmp_path / "net.caffemodel")
    assert [str(warning.message).split("'")[-2] for warning in told] == ["flux_param", "lrn_param.size"]
    assert "layer 'l' (T)" in str(told[0].message)
    assert read(path).layers[0].definition == parse('name: "l" type: "T" lrn_param { k: 2 }')


def test_values_stream_in_small_pieces() -> None:
    class Sink(io.RawIOBase):
        largest = total = 0

        def write(self, data: object) -> int:
            size = memoryview(data).nbytes  # type: ignore[arg-type]
            self.largest, self.total = max(self.largest, size), self.total + size
            return size

    sink = Sink()
    caffemodel.write(opaque('name: "l" type: "T"', np.zeros(8_000_000, np.float32)), sink)  # type: ignore[arg-type]
    assert sink.total > 32_000_000
    assert sink.largest <= 1 << 22


# -- against the real Caffe --------------------------------------------------------------------

SCRIPT = """
import os, sys
os.environ["GLOG_minloglevel"] = "3"
import caffe
old, new = (caffe.Net(sys.argv[1], path, caffe.TEST) for path in sys.argv[2:])
assert list(old.params) == list(new.params)
for name in old.params:
    for a, b in zip(old.params[name], new.params[name]):
        assert a.data.tobytes() == b.data.tobytes(), name
"""


@pytest.mark.caffe
@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if not case.name.startswith(FORKS)], ids=lambda path: path.name
)
def test_caffe_gets_the_same_bits(tmp_path: Path, case: Path) -> None:
    prototxt, weights = case / "deploy.prototxt", case / "weights.caffemodel"
    with warnings.catch_warnings():
        path = written(bridge.load(prototxt, weights), tmp_path / "net.caffemodel")
    python = os.environ["BRIDGE_PYCAFFE_PYTHON"]
    subprocess.run([python, "-c", SCRIPT, prototxt, weights, path], check=True, capture_output=True)
