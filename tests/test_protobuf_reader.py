"""The reader of caffemodels: every generation, every encoding of values, and nothing else."""

from __future__ import annotations

import gc
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.protobuf import read, read_mean
from backends.stored import Stored
from backends.wire import FileBytes, Span
from bridge.caffe_files.proto import schema
from bridge.caffe_files.prototxt import parse, parse_file
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import FormatError, MissingFileError, UsageError
from bridge.files.sniff import KINDS, identify, sniff
from bridge.schema import Blob
from bridge.schema.message import Message
from tests import encode
from tests.conftest import FASHION, GOLDEN, ZOO, missing, zoo
from tests.encode import blob, chunk, net, number, varint
from tests.strategies import files as strategies

LAYER = parse('name: "l" type: "Mystery"')


@pytest.fixture
def model(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes bytes to a file."""

    def write(data: bytes) -> Path:
        path = tmp_path / "net.caffemodel"
        path.write_bytes(data)
        return path

    return write


def one_blob(path: Path) -> Blob:
    (layer,) = read(path).layers
    (stored,) = layer.blobs
    return stored


# -- what is right reads -----------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["V0", "V1", "V2"])
@example(layers=[], name="layer { }")  # with the tag in front, it reads as text
@given(layers=strategies.stored_nets(), name=strategies.NAMES)
def test_parse_undoes_encode(scratch: Path, generation: str, layers: strategies.StoredNet, name: str) -> None:
    data = net([(layer, [b.data for b in blobs]) for layer, blobs in layers], generation, Message("", name=name))
    scratch.write_bytes(data)
    raw = read(scratch)
    assert raw.name == name
    assert raw.notes == ()
    assert [layer.definition for layer in raw.layers] == [layer for layer, _ in layers]
    assert [layer.name for layer in raw.layers] == [layer.text("name") for layer, _ in layers]
    assert [layer.type for layer in raw.layers] == [layer.text("type") for layer, _ in layers]
    for layer, (_, blobs) in zip(raw.layers, layers, strict=True):
        for found, drawn in zip(layer.blobs, blobs, strict=True):
            assert found.shape == drawn.expected.shape
            assert found.dtype == drawn.expected.dtype
            assert found.numpy().tobytes() == drawn.expected.tobytes()


@pytest.mark.parametrize("values", encode.VALUES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3, 0), (2, 3, 4), (1, 1, 1, 7)])
def test_encoding(model: Callable[[bytes], Path], values: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).standard_normal(shape)
    found = one_blob(model(net([(LAYER, [blob(array, values, diff=True)])])))
    np.testing.assert_array_equal(found.numpy(), encode.stored(array, values), strict=True)


@pytest.mark.parametrize(
    ("head", "count", "shape"),
    [
        (b"", 1, ()),
        (b"", 6, (6,)),
        (b"", 0, (0,)),
        (chunk(7, b""), 1, ()),
        (chunk(7, chunk(1, b"\x02\x03")), 6, (2, 3)),
        (chunk(7, number(1, 2)) + chunk(7, number(1, 3)), 6, (2, 3)),
        (number(1, 2) + number(4, 3), 0, (2, 0, 0, 3)),
        (number(1, 1) + number(2, 1) + number(3, 2) + number(4, 3), 6, (1, 1, 2, 3)),
        (chunk(7, chunk(1, b"\x06")) + number(3, 0), 0, (0, 0, 0, 0)),
    ],
)
def test_shape_rules(model: Callable[[bytes], Path], head: bytes, count: int, shape: tuple[int, ...]) -> None:
    found = one_blob(model(net([(LAYER, [head + chunk(5, np.ones(count, "<f4").tobytes())])])))
    assert found.shape == shape


def test_raw_data_without_a_type_fills_its_shape(model: Callable[[bytes], Path]) -> None:
    shape = chunk(7, chunk(1, b"\x03"))
    for dtype in ("<f2", "<f4", "<f8"):
        values = np.arange(3).astype(dtype)
        assert one_blob(model(net([(LAYER, [shape + chunk(12, values.tobytes())])]))).dtype == values.dtype


def test_big_runs_of_single_values_and_pieces(model: Callable[[bytes], Path]) -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype("<f4")
    for style in ("unpacked", "mixed", "chunked"):
        found = one_blob(model(net([(LAYER, [blob(values, style)])])))
        assert found.location is None
        np.testing.assert_array_equal(found.numpy(), values)


def test_byte_order_is_the_hosts() -> None:
    source = FileBytes(b"\x00" + chunk(5, np.arange(3).astype("<f4").tobytes()), "file")
    stored = Stored(Span(source, 1, source.size, schema("BlobProto"), "BlobProto"))
    assert stored.blob("b").numpy().dtype.isnative
    # The same path with the other order in the file, as a host of the other order sees ours.
    stored.values.dtype = np.dtype(">f4")
    swapped = np.frombuffer(np.arange(3).astype("<f4").tobytes(), ">f4")
    found = stored.load()
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, swapped)


def test_arrays_are_read_only_views_made_when_asked_for(model: Callable[[bytes], Path]) -> None:
    values = np.arange(100_000, dtype="<f4")
    path = model(net([(LAYER, [blob(values)])]))
    found = one_blob(path)
    tracemalloc.start()
    array = found.numpy()
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert found.numpy() is array
    assert found.location is not None
    with open(path, "rb") as file:
        file.seek(found.location.offset)
        assert file.read(found.location.nbytes) == values.tobytes()
    aligned = np.require(array, requirements="A")
    assert aligned.flags.aligned
    np.testing.assert_array_equal(aligned, values)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_map_lives_as_long_as_its_arrays(model: Callable[[bytes], Path]) -> None:
    path = model(net([(LAYER, [blob(np.ones(5))])]))

    def mapped() -> bool:
        gc.collect()
        open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return str(path) in Path("/proc/self/maps").read_text() or str(path) in open_files

    array = one_blob(path).numpy()
    assert mapped()
    assert array.sum() == 5
    del array
    assert not mapped()


def test_file_over_2_gib(tmp_path: Path) -> None:
    path, count = tmp_path / "big.caffemodel", (1 << 29) + (1 << 20)
    last = np.arange(3, dtype="<f4")
    shape = chunk(7, chunk(1, varint(count)))
    head = shape + encode.tag(5, 2) + varint(count * 4)
    layer = chunk(1, b"big") + encode.tag(7, 2) + varint(len(head) + count * 4) + head
    with open(path, "wb") as file:
        file.write(encode.tag(100, 2) + varint(len(layer) + count * 4) + layer)
        start = file.tell()
        file.seek(start + (count - 3) * 4)
        file.write(last.tobytes() + net([(LAYER, [blob(last)])]))
    raw = read(path)
    assert [layer.name for layer in raw.layers] == ["big", "l"]
    assert raw.layers[0].blobs[0].shape == (count,)
    np.testing.assert_array_equal(raw.layers[0].blobs[0].numpy()[-4:], [0, *last])
    np.testing.assert_array_equal(raw.layers[1].blobs[0].numpy(), last)


def test_shared_names_and_unknown_types_are_kept(model: Callable[[bytes], Path]) -> None:
    text = 'name: "l" type: "Mystery" bottom: "a" param { name: "w" } include { stage: "x" }'
    layers = [(parse(text), [blob(np.full(2, i))]) for i in range(3)]
    raw = read(model(net(layers)))
    assert [layer.definition for layer in raw.layers] == [parse(text)] * 3
    assert [layer.blobs[0].numpy()[0] for layer in raw.layers] == [0, 1, 2]


def test_unknown_fields_are_kept_readable(model: Callable[[bytes], Path]) -> None:
    layer = chunk(1, b"l") + chunk(2, b"T") + chunk(999, b"\x01\x02") + number(998, 7)
    raw = read(model(chunk(1, b"n") + chunk(100, layer) + number(55, 3)))
    assert raw.layers[0].definition == parse('name: "l" type: "T"').__class__(
        "", name="l", type="T", **{"999": b"\x01\x02", "998": 7}
    )
    assert raw.definition.get("55") == 3


def test_weights_do_not_depend_on_parameters_that_do_not_decode(model: Callable[[bytes], Path]) -> None:
    layer = chunk(1, b"l") + chunk(2, b"T") + chunk(143, b"\x0a\x63") + chunk(7, blob(np.arange(4)))
    raw = read(model(chunk(100, layer)))
    np.testing.assert_array_equal(raw.layers[0].blobs[0].numpy(), np.arange(4))
    assert raw.layers[0].definition.get("143") == b"\x0a\x63"
    assert "NetParameter.layer[0].input_param" in raw.notes[0]
    assert "--dialect" in raw.notes[0]


def test_dialect_names_colliding_fields(model: Callable[[bytes], Path]) -> None:
    segnet = chunk(1, b"l") + chunk(2, b"SegBN") + chunk(137, number(1, 3))
    path = model(chunk(100, segnet))
    assert read(path, dialect="segnet").layers[0].definition.message("upsample_param") == parse("scale: 3")
    assert read(path, dialect="tsn").layers[0].definition.names()[-1] == "bn_param"
    assert read(path).layers[0].definition.message("embed_param") == parse("num_output: 3")
    assert read(path, dialect="bvlc").layers[0].definition.message("embed_param") == parse("num_output: 3")
    with pytest.raises(UsageError, match="no dialect 'klingon'"):
        read(path, dialect="klingon")


def test_colliding_field_goes_with_its_layers_type(model: Callable[[bytes], Path]) -> None:
    interp = chunk(1, b"l") + chunk(143, number(1, 60) + number(2, 61)) + chunk(2, b"Interp")
    definition = read(model(chunk(100, interp))).layers[0].definition
    assert definition.message("interp_param") == parse("height: 60 width: 61")


def test_old_layers_win_over_new_ones(model: Callable[[bytes], Path]) -> None:
    old = parse('name: "old" type: "ReLU"')
    raw = read(model(net([(LAYER, [])]) + net([(old, [])], "V1")))
    assert [layer.name for layer in raw.layers] == ["old"]
    assert "both" in raw.notes[0]


def test_padding_layers_drop_out_and_blobs_stay_with_their_layers(model: Callable[[bytes], Path]) -> None:
    def v0(text: str, inner: str, *blobs: bytes) -> bytes:
        body = encode.definition("V0LayerParameter", parse(inner)) + b"".join(chunk(50, data) for data in blobs)
        return chunk(2, encode.definition("V1LayerParameter", parse(text)) + chunk(1, body))

    data = chunk(3, b"data")
    data += v0('bottom: "data" top: "p"', 'name: "pad" type: "padding" pad: 2', blob(np.zeros(1)))
    data += v0('bottom: "p" top: "c"', 'name: "c" type: "conv" num_output: 3', blob(np.ones(3)), blob(np.full(2, 2.0)))
    raw = read(model(data))
    assert [layer.name for layer in raw.layers] == ["input", "c"]
    assert raw.layers[1].definition == parse(
        'name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 3 pad: 2 }'
    )
    assert [float(b.numpy()[0]) for b in raw.layers[1].blobs] == [1, 2]


# -- models of others ------------------------------------------------------------------------


def plain(definition: Message) -> Message:
    """A definition without what a solver or a phase adds."""
    twin = Message()
    for name, value in definition.items():
        if name in ("phase", "include", "exclude", "param", "loss_weight", "propagate_down"):
            continue
        twin.add(name, plain(value) if isinstance(value, Message) else value)
    return twin


@pytest.mark.parametrize("case", GOLDEN, ids=lambda path: path.name)
def test_golden_definition_is_what_its_prototxt_says(case: Path) -> None:
    raw = read(case / "weights.caffemodel")
    _, expected = upgrade_net(parse_file(case / "deploy.prototxt"))
    stored = {layer.name: layer for layer in raw.layers}
    trained = [layer for layer in expected if not layer.messages("include")]
    splits = [layer.definition for layer in raw.layers if layer.name.endswith("_split")]  # Caffe put them in
    whole = {top: split.get("bottom") for split in splits for top in split.all("top")}
    assert trained
    for layer in trained:
        definition = plain(stored[layer.text("name")].definition)
        definition.set("bottom", *(whole.get(bottom, bottom) for bottom in definition.all("bottom")))
        assert definition == plain(layer)
    assert raw.notes == ()


@pytest.mark.zoo
def test_zoo_reads() -> None:
    paths = sorted(ZOO.rglob("*.caffemodel"))
    if not paths:
        missing("zoo", f"no models in {ZOO} (set BRIDGE_ZOO)")
    for path in paths:
        raw = read(path)
        assert sum(layer.blobs[0].numpy().size for layer in raw.layers if layer.blobs)
        assert raw.notes == ()
        assert not [name for layer in raw.layers for name in layer.definition.names() if name.isdigit()]


@pytest.mark.zoo
def test_half_precision_twin_is_the_float_model_rounded() -> None:
    single = read(zoo("hyperlpr_finemapping") / "weights.caffemodel").layers
    half = read(zoo("hyperlpr_finemapping_fp16") / "weights.caffemodel").layers
    pairs = [(a, b) for x, y in zip(single, half, strict=True) for a, b in zip(x.blobs, y.blobs, strict=True)]
    assert pairs
    for a, b in pairs:
        assert b.dtype == np.float16
        np.testing.assert_array_equal(b.numpy(), a.numpy().astype(np.float16), strict=True)


@pytest.mark.zoo
def test_zoo_means() -> None:
    for name, shape in (("mnist_mean", (1, 1, 28, 28)), ("sample_mean", None)):
        mean = read_mean(zoo(f"{name}.binaryproto"))
        assert shape is None or mean.shape == shape
        assert mean.numpy().dtype == np.float32
        assert np.isfinite(mean.numpy()).all()


def test_mean(tmp_path: Path) -> None:
    path, values = tmp_path / "m.binaryproto", np.random.default_rng(0).random((1, 3, 2, 2)).astype("f4")
    for shape in ("legacy", "shape"):
        path.write_bytes(blob(values, "packed", shape))
        np.testing.assert_array_equal(read_mean(path).numpy(), values, strict=True)
    path.write_bytes(net([(LAYER, [])]))
    with pytest.raises(FormatError, match="holds caffemodel, expected a binaryproto"):
        read_mean(path)


# -- what is wrong says what it is -----------------------------------------------------------


def not_models() -> dict[str, bytes]:
    solver = number(1, 350000) + chunk(2, b"snap_iter_350000.caffemodel") + chunk(3, blob(np.ones(4)))
    onnx = number(1, 8) + chunk(2, b"pytorch") + chunk(3, b"2.1.0") + chunk(7, chunk(1, b"node"))
    return {
        "empty": b"",
        "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
        "html": b"\n<!DOCTYPE html><html><body>404</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "onnx": onnx,
        "pickle": pickle.dumps({"a": [1, 2]}),
        "prototxt": b'# a net\nname: "AlexNet"\nlayer { name: "data" }\n',
        "solverstate": solver,
        "safetensors": (16).to_bytes(8, "little") + b'{"a": {}}       ',
        "binaryproto": blob(np.ones((1, 3, 2, 2)), "packed", "legacy"),
        "npy": b"\x93NUMPY\x01\x00" + bytes(30),
        "json": b'{"format": "torch"}',
        "tar": bytes(257).replace(b"\x00", b"a") + b"ustar\x0000",
        "utf16": 'name: "AlexNet"'.encode("utf-16"),
        "unknown": b"\x7fELF\x02\x01\x01" + bytes(200),
    }


@pytest.mark.parametrize("kind", not_models())
def test_what_is_no_caffemodel_says_what_it_is(model: Callable[[bytes], Path], kind: str) -> None:
    path = model(not_models()[kind])
    assert sniff(path).name == kind
    with pytest.raises(FormatError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert (KINDS[kind].problem or kind) in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(("member", "kind"), [("a.npy", "npz"), ("net.caffemodel", "zip"), ("m/data.pkl", "torch")])
def test_archives(tmp_path: Path, member: str, kind: str) -> None:
    path = tmp_path / "net.caffemodel"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"\x00" * 8)
    assert sniff(path).name == kind
    with pytest.raises(FormatError):
        read(path)


@pytest.mark.parametrize("case", [*GOLDEN, FASHION], ids=lambda path: path.name)
def test_fixtures_are_told_apart(case: Path) -> None:
    assert sniff(case / "deploy.prototxt").name == "prototxt"
    assert {sniff(path).name for path in case.glob("*.caffemodel")} == {"caffemodel"}
    assert sniff(case / "io.npz").name == "npz"


@given(layers=strategies.stored_nets(), generation=st.sampled_from(["V0", "V1", "V2"]), name=strategies.NAMES)
def test_caffemodel_is_never_taken_for_something_else(layers: strategies.StoredNet, generation: str, name: str) -> None:
    data = net([(layer, [b.data for b in blobs]) for layer, blobs in layers], generation, Message("", name=name))
    assert identify(data[:4096]) == "caffemodel"


@pytest.mark.parametrize("letters", [9, 10, 12, 13, 32])
def test_a_name_alone_is_no_prototxt_though_its_length_is_white_space(letters: int) -> None:
    assert identify(bytes([0x0A, letters]) + b"n" * letters) == "caffemodel"


def test_folder_pipe_and_missing_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "pipe", "is not a regular file")):
        with pytest.raises(MissingFileError, match=message):
            read(path)
    with pytest.raises(MissingFileError, match="No such file"):
        read(tmp_path / "gone.caffemodel")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (chunk(7, chunk(1, b"\x05")) + chunk(5, bytes(16)), "layer 'l' (T): blob 0 has 4 values, expected 5 = 5"),
        (number(1, 2) + chunk(5, bytes(4)), "blob 0 has 1 values, expected 0 = 2 x 0 x 0 x 0"),
        (chunk(7, b"") + chunk(5, bytes(8)), "blob 0 has 2 values, expected 1 = scalar"),
        (chunk(5, bytes(7)), "NetParameter.layer[0].blobs[0]: data: length 7 is not a multiple of 4"),
        (chunk(8, bytes(7)), "NetParameter.layer[0].blobs[0]: double_data: length 7 is not a multiple of 8"),
        (number(10, 2) + chunk(12, bytes(7)), "layer[0].blobs[0]: raw_data: length 7 is not a multiple of 2"),
        (number(10, 9) + chunk(12, bytes(8)), "raw_data_type 9, expected 0 (double), 1 (float) or 2 (half)"),
        (chunk(7, number(1, (1 << 64) - 1)), "shape has extent -1, expected 0 to 2147483647"),
        (chunk(7, chunk(1, b"\x01" * 33)), "shape has 33 axes, expected at most 32"),
        (chunk(7, chunk(1, b"\x00" + varint((1 << 31) - 1) * 3)), "is larger than any memory"),
    ],
)  # fmt: skip
def test_bad_blob_says_what_is_wrong(model: Callable[[bytes], Path], data: bytes, message: str) -> None:
    path = model(chunk(100, chunk(1, b"l") + chunk(2, b"T") + chunk(7, data)))
    with pytest.raises(FormatError) as error:
        read(path)
    assert message in str(error.value)
    assert f"{path}: byte " in str(error.value)
