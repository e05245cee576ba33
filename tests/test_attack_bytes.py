"""Files under attack: every byte comes back, what was an exception is one line, and graphs of others do no harm."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.caffe_files.prototxt import format as format_text
from bridge.caffe_files.prototxt import parse, parse_file
from bridge.errors import BridgeError, FormatError, ModelError, UnsupportedLayerError, UsageError
from bridge.limits.sources import inside, open_file
from bridge.schema import Blob, Blobs, Net, Opaque
from bridge.schema.message import Fixed32, Fixed64, Group, Message
from bridge.show.html import tag
from bridge.verification.arrays import read_array
from bridge.verification.inputs import parse_range
from tests import encode
from tests.conftest import need
from tests.processes import DEPLOY, ROOT, WEIGHTS, run

pytestmark = pytest.mark.damage

# -- every byte comes back -------------------------------------------------------------------------

GBK, LATIN = "中文".encode("gbk"), "Größe".encode("latin-1")


@pytest.mark.parametrize("raw", [GBK, LATIN, "é".encode(), b"a/b\xff", b"\xed\xa0\x80"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".caffemodel", ".h5"])
def test_names_are_bytes(raw: bytes, suffix: str, tmp_path: Path) -> None:
    if suffix == ".h5":
        need("h5py")
    text = b'layer { name: "%s" type: "Odd" top: "%s" }' % (raw, raw)
    (tmp_path / "a.prototxt").write_bytes(text)
    (definition,) = parse_file(tmp_path / "a.prototxt").messages("layer")
    name = definition.text("name")
    assert name.encode("utf-8", "surrogateescape") == raw
    blobs = Blobs({"blob0": Blob.of(np.ones(3, np.float32))})
    bridge.save(Net("n", (Opaque(name=name, type="Odd", definition=definition, blobs=blobs),)), tmp_path / f"b{suffix}")
    (layer,) = bridge.load(tmp_path / f"b{suffix}")
    assert layer.name == name
    assert layer.blobs["blob0"].tolist() == [1, 1, 1]
    bridge.save(bridge.load(tmp_path / f"b{suffix}"), tmp_path / "c.caffemodel")
    assert raw in (tmp_path / "c.caffemodel").read_bytes()


def test_a_name_in_escapes_is_the_name_in_bytes() -> None:
    escaped = "".join(f"\\{byte:03o}" for byte in GBK)
    assert parse(f'name: "{escaped}"').text("name").encode("utf-8", "surrogateescape") == GBK
    assert parse('name: "\\303" "\\251"').text("name") == "é"
    message = Message(name=GBK.decode("utf-8", "surrogateescape"))
    assert format_text(message).isascii()
    assert parse(format_text(message)) == message


def test_onnx_says_that_it_cannot_hold_such_a_name(model: tuple[Path, Path], tmp_path: Path) -> None:
    files = [tmp_path / path.name for path in model]
    for path in files:
        path.write_bytes(path.read_bytes().replace(b"conv1", b"c\xd6\xd0v1"))
    net = bridge.load(*files)
    assert any("\udcd6" in layer.name for layer in net)
    with pytest.raises(UnsupportedLayerError, match="not UTF-8, which ONNX demands"):
        bridge.export_onnx(net, tmp_path / "e.onnx")


FIELDS = {
    "varint": encode.tag(300, 0) + encode.varint((1 << 64) - 1),
    "fixed64": encode.tag(301, 1) + struct.pack("<Q", 0x7FF0_0000_0000_0001),
    "fixed32": encode.tag(302, 5) + struct.pack("<I", 0x7FA0_0001) + encode.tag(302, 5) + bytes([0, 0, 0, 0x80]),
    "bytes": encode.tag(303, 2) + encode.varint(5) + b'\x00\xff\xfe"\\',
    "group": encode.tag(304, 3) + encode.tag(2, 0) + b"\x05" + encode.tag(1, 2) + b"\x01x" + encode.tag(2, 5) + b"abcd"
    + encode.tag(304, 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".caffemodel"])
def test_unknown_fields_come_back_to_the_byte(kind: str, suffix: str, tmp_path: Path) -> None:
    layer = encode.tag(1, 2) + b"\x01c" + encode.tag(2, 2) + b"\x03Odd" + FIELDS[kind]
    data = encode.tag(1, 2) + b"\x01n" + FIELDS[kind] + encode.tag(100, 2) + encode.varint(len(layer)) + layer
    (tmp_path / "a.caffemodel").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bridge.save(bridge.load(tmp_path / "a.caffemodel"), tmp_path / f"b{suffix}")
        bridge.save(bridge.load(tmp_path / f"b{suffix}"), tmp_path / "c.caffemodel")
    assert sorted((tmp_path / "c.caffemodel").read_bytes()) == sorted(data)
    assert (tmp_path / "c.caffemodel").read_bytes().count(FIELDS[kind]) == 2


def test_unnamed_fields_in_text() -> None:
    text = '300: -1\n301: 0x00000000000000ff\n302: 0xffc00000\n303: "\\000\\""\n304: { 0: "\\244\\023" }\n'
    message = parse(text)
    kinds = [type(message.get(str(number))) for number in range(300, 305)]
    assert kinds == [int, Fixed64, Fixed32, bytes, Group]
    assert format_text(message) == text


@pytest.mark.parametrize("value", [-0.0, 1e-45, 0.1, 3.4028235e38, 1.0000000596046448, float("inf"), 5.0])
def test_floats_of_parameters(value: float) -> None:
    again = parse(format_text(Message(x=value))).get("x")
    assert struct.pack("<d", float(again)) == struct.pack("<d", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_known_layer_with_another_number_of_blobs_is_kept(suffix: str, tmp_path: Path) -> None:
    layer = parse('name: "c" type: "Convolution" convolution_param { num_output: 2 kernel_size: 1 }')
    blobs = [encode.blob(np.full((2, 1, 1, 1), i), "packed") for i in range(3)]
    (tmp_path / "a.caffemodel").write_bytes(encode.net([(layer, blobs)], "V2", Message()))
    bridge.save(bridge.load(tmp_path / "a.caffemodel"), tmp_path / f"b{suffix}")
    (found,) = bridge.load(tmp_path / f"b{suffix}")
    assert not found.uncovered
    assert [float(array.max()) for array in found.blobs.values()] == [0, 1, 2]


def test_a_whole_number_beyond_64_bits_is_not_written(tmp_path: Path) -> None:
    layer = Opaque(name="c", type="Odd", definition=parse(f'name: "c" type: "Odd" 300: {1 << 64}'))
    with pytest.warns(UserWarning, match="'300' is not written"):
        bridge.save(Net("n", (layer,)), tmp_path / "a.caffemodel")


# -- what was an exception -------------------------------------------------------------------------


def test_a_long_name_in_an_archive(tmp_path: Path) -> None:
    for name in ("n" * 70_000, "ü" * 40_000):
        layer = Opaque(name=name, type="Odd", definition=Message(name=name, type="Odd"),
                       blobs=Blobs({"blob0": Blob.of(np.ones(2, np.float32))}))  # fmt: skip
        for suffix in (".npz", ".safetensors"):
            bridge.save(Net("n", (layer, layer)), tmp_path / f"a{suffix}")
            assert [found.name for found in bridge.load(tmp_path / f"a{suffix}")] == [name, name]


def test_half_a_character_in_a_header(tmp_path: Path) -> None:
    for header in (
        {"\ud800/0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {"__metadata__": {"bridge.blobs": "[]", "bridge.prototxt": "a: '\ud800'"}},
    ):
        text = json.dumps(header).encode()
        (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(FormatError, match=r"half a character|is not text"):
            bridge.load(tmp_path / "a.safetensors")


def test_a_location_that_is_no_path(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    for name in ("", "a\0b", "../x", "/etc/passwd"):
        with pytest.raises(FormatError, match="lie outside the model's folder"):
            inside(tmp_path, name, "a.onnx")
    for name in ("loop", "n" * 5000):  # refused at once, or by later versions of Python when it is opened
        with pytest.raises(BridgeError):
            open_file(inside(tmp_path, name, "a.onnx"))


@pytest.mark.parametrize("ends", [(-1e308, 1e308), (0, 4e38)])
def test_a_range_wider_than_float32(ends: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="wider than float32"):
        parse_range(ends)


def test_a_mean_of_no_values(tmp_path: Path) -> None:
    (tmp_path / "m.binaryproto").write_bytes(encode.blob(np.zeros((0, 0, 0, 0)), "packed", "legacy"))
    assert run("info", tmp_path / "m.binaryproto").returncode == 0
    found = run("export", DEPLOY, WEIGHTS, "-o", tmp_path / "e.onnx", "--mean", tmp_path / "m.binaryproto")
    assert found.returncode == 2
    assert b"expected one image" in found.stderr


def test_a_file_whose_name_is_not_utf8(model: tuple[Path, Path], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xd6\xd0.caffemodel"))
    model[1].rename(odd)
    for arguments in (["info", odd], ["convert", odd, "-o", f"{odd}.npz"], ["verify", odd, "--json", "-"],
                      ["export", model[0], odd, "-o", f"{odd}.onnx", "--digest", "--no-check"],
                      ["verify", odd, "--html", tmp_path / "r.html"]):  # fmt: skip
        command = [sys.executable, "-m", "bridge", *arguments]
        found = subprocess.run(
            list(map(os.fsencode, map(str, command))), env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr.decode(errors="replace")


@pytest.mark.parametrize("header", [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 70 + "), }",
    "((((((", "{'a': " * 500, "\0", "{'descr': '<f4'}", "[]",
])  # fmt: skip
def test_headers_of_arrays(header: str, tmp_path: Path) -> None:
    text = header.encode()
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n" + bytes(8)
    )
    with pytest.raises(FormatError):
        read_array(tmp_path / "a.npy", "data", (1,))


def test_an_input_of_another_name_in_the_other_model(model: tuple[Path, Path], tmp_path: Path) -> None:
    need("onnxruntime")
    other = tmp_path / "other.prototxt"
    other.write_text(model[0].read_text().replace('"data"', '"picture"'))
    report = bridge.verify(*model, against=[other, model[1]], engines=["onnxruntime"])
    assert report.undone or report.remarks or not report.passed


# -- graphs of others ------------------------------------------------------------------------------


def looping() -> bytes:
    """A graph that counts to 2^62."""
    import onnx
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["cond"], ["cond_out"]), helper.make_node("Sin", ["x"], ["x_out"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
         helper.make_tensor_value_info("x_out", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "data"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        initializer=[helper.make_tensor("n", TensorProto.INT64, [], [1 << 62])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(onnx.ModelProto.SerializeToString(model))


def large() -> bytes:
    """A graph that makes an array of 2^38 bytes."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Expand", ["data", "n"], ["big"]), helper.make_node("ReduceSum", ["big"], ["y"])],
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[helper.make_tensor("n", TensorProto.INT64, [2], [1 << 20, 1 << 16])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(onnx.ModelProto.SerializeToString(model))


@pytest.mark.parametrize(
    ("graph", "seconds", "message"),
    [(looping, 3.0, "did not end within 3 seconds"), (large, 60.0, "memory|allocat|ended ONNX Runtime|bad"),
     (lambda: b"no model", 60.0, "Protobuf|protobuf|parsing|model")],
)  # fmt: skip
def test_a_graph_of_others_is_run_in_a_child(
    graph: Callable[[], bytes], seconds: float, message: str, tmp_path: Path
) -> None:
    need("onnxruntime")
    from bridge.engines.sandbox import Sandbox

    fed = {"data": np.ones(1, np.float32)}
    with Sandbox(seconds) as runtime:
        with pytest.raises(ModelError, match=message):
            runtime.run(graph(), ["y"], fed, tmp_path)
        runtime.seconds = 60
        import onnx
        from onnx import helper

        plain = onnx.ModelProto.FromString(large())
        plain.graph.initializer[0].CopyFrom(helper.make_tensor("n", 7, [2], [3, 2]))
        assert runtime.run(plain.SerializeToString(), ["y"], fed, tmp_path)["y"].reshape(()) == 6


def test_unknown_fields_of_a_blob_are_told_of(tmp_path: Path) -> None:
    blob = encode.blob(np.ones(3), "packed") + FIELDS["bytes"]
    (tmp_path / "a.caffemodel").write_bytes(encode.net([(parse('name: "c" type: "Odd"'), [blob])], "V2", Message()))
    assert bridge.load(tmp_path / "a.caffemodel").notes == (
        "1 blobs have fields that no known caffe.proto has (303): not kept",
    )


def test_a_command_writes_no_more_than_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.files.atomic import end_command, start_command
    from bridge.limits import budget

    net = bridge.load(WEIGHTS)
    start_command([WEIGHTS], [tmp_path / "a.npz"])
    try:
        bridge.save(net, tmp_path / "a.npz")
        monkeypatch.setattr(budget.BUDGET, "_limit", 1000)
        with pytest.raises(BridgeError, match="the output is larger than 1000 bytes"):
            bridge.save(net, tmp_path / "b.npz")
    finally:
        end_command()
    assert not (tmp_path / "b.npz").exists()


def test_an_array_that_is_named_twice(tmp_path: Path) -> None:
    entry = b'{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = b'{"a/0": %s, "a/0": %s}' % (entry, entry)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(FormatError, match="the key 'a/0' stands twice"):
        bridge.load(path)


def test_a_page_has_no_control_characters() -> None:
    assert tag("p", "a\x1b[31m\x07<b>\n", title="\x9b") == '<p title="\\x9b">a\\x1b[31m\\x07&lt;b&gt;\n</p>'


@pytest.mark.parametrize("command", ["convert {w} -o /dev/stdout --format npz", "export {p} {w} -o /dev/stdout"])
def test_a_pipe_is_no_target(command: str, model: tuple[Path, Path]) -> None:
    found = run(*command.format(p=model[0], w=model[1]).split(), *(["--no-check"] if "export" in command else []))
    assert found.returncode == 2
    assert b"/dev/stdout: is not a regular file" in found.stderr
    assert not found.stdout
