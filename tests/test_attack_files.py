"""Nothing that is read is written over, nothing changes unnoticed, and every byte comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files.prototxt import format as format_text
from bridge.caffe_files.prototxt import parse, parse_file
from bridge.errors import BridgeError, ChangedError, FormatError, ModelError, UnsupportedLayerError, UsageError
from bridge.files.atomic import refuse_sources
from bridge.limits.sources import inside, open_file
from bridge.schema import Blob, Blobs, Net, Opaque
from bridge.schema.message import Fixed32, Fixed64, Group, Message
from bridge.verification.arrays import read_array
from bridge.verification.inputs import parse_range
from tests import encode
from tests.conftest import need

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "fixtures" / "golden" / "net_alexnet_mini"
DEPLOY, WEIGHTS = GOLDEN / "deploy.prototxt", GOLDEN / "weights.caffemodel"


def run(*args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "bridge", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    return subprocess.run(command, env=environment, check=False, **options)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    """A prototxt and its weights, in a folder of the test's own."""
    files = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    for source, target in zip((DEPLOY, WEIGHTS), files, strict=True):
        target.write_bytes(source.read_bytes())
    return files


# -- outputs ---------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        "convert {p} {w} -o {w}",
        "convert {p} {w} -o {p} --format npz",
        "convert {p} {w} -o {hard}",
        "convert {p} {w} -o {soft}",
        "convert {onnx} -o {onnx}.data --format npz",
        "export {p} {w} -o {w} --no-check",
        "export {p} {w} -o {io} --recorded {io} --no-check",
        "export {p} {w} -o {mean} --mean {mean} --no-check",
        "export {p} {w} -o {folder}/x --mean {folder}/x.data --external-data --no-check",
        "verify {p} {w} --json {w}",
        "verify {p} {w} --against {onnx} --html {onnx}.data --engines none",
        "verify {p} {w} --html {folder}/f --json {folder}/f",
        "verify {p} {w} --html {folder}/f --json {folder}/../{name}/f",
        "verify {p} {w} --recorded {io} --save-inputs {io} --engines none",
    ],
)
def test_no_output_is_an_input_or_another_output(arguments: str, model: tuple[Path, Path], tmp_path: Path) -> None:
    if "--recorded" in arguments:
        need("onnxruntime")
    prototxt, weights = model
    os.link(weights, tmp_path / "hard.npz")
    os.symlink(weights, tmp_path / "soft.npz")
    bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    (tmp_path / "io.npz").write_bytes((GOLDEN / "io.npz").read_bytes())
    for name in ("mean.binaryproto", "x.data"):
        (tmp_path / name).write_bytes(encode.blob(np.zeros((1, 3, 1, 1)), "packed"))
    before = snapshot(tmp_path)
    found = run(
        *arguments.format(
            p=prototxt, w=weights, hard=tmp_path / "hard.npz", soft=tmp_path / "soft.npz", onnx=tmp_path / "e.onnx",
            io=tmp_path / "io.npz", mean=tmp_path / "mean.binaryproto", folder=tmp_path, name=tmp_path.name,
        ).split()
    )  # fmt: skip
    assert found.returncode == 2, found
    assert b"would be written over" in found.stderr or b"is named for two outputs" in found.stderr
    assert snapshot(tmp_path) == before


def test_a_library_call_writes_over_no_other_part_of_a_model(model: tuple[Path, Path], tmp_path: Path) -> None:
    bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    with pytest.raises(UsageError, match="would be written over"):
        bridge.save(bridge.load(*model), model[0], "npz")
    with pytest.raises(UsageError, match="would be written over"):
        bridge.save(bridge.load(tmp_path / "e.onnx"), tmp_path / "e.onnx.data", "npz")


def test_targets_that_do_not_exist_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    refuse_sources([tmp_path / "gone"], [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="two outputs"):
        refuse_sources([], [tmp_path / "a", tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize("replaced", [0, 1, 2, 3])
def test_a_model_has_its_own_data_beside_it_at_every_moment(
    replaced: int, model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")
    import onnxruntime

    net = bridge.load(*model)
    other = Net(net.name, tuple(_doubled(layer) for layer in net.layers), net.definition, sources=net.sources)
    target = tmp_path / "e.onnx"
    bridge.export_onnx(net, target, external_data="file", check=False)
    inputs = {name: np.ones(shape, np.float32) for name, shape in net.inputs.items() if shape}

    def outputs() -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        return list(session.run(None, inputs))

    old = outputs()
    rename, calls = os.replace, iter(range(100))

    def killed(*paths: Any) -> None:
        if next(calls) == replaced:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        bridge.export_onnx(other, target, external_data="file", check=False)
    monkeypatch.undo()
    found = outputs()
    bridge.export_onnx(other, target, external_data="file", check=False)
    new = outputs()
    assert not np.array_equal(old[0], new[0])
    assert np.array_equal(found[0], old[0] if replaced < 2 else new[0])
    assert {"e.onnx", "e.onnx.data"} <= {path.name for path in tmp_path.iterdir()}


def _doubled(layer: Any) -> Any:
    import dataclasses

    blobs = {role: Blob.of(blob.numpy() * 2) for role, blob in layer.blobs.entries()}
    return dataclasses.replace(layer, blobs=Blobs(blobs))


def test_an_export_in_place_of_another_leaves_two_files(model: tuple[Path, Path], tmp_path: Path) -> None:
    for _ in range(2):
        bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"e.onnx", "e.onnx.data", "net.prototxt", "net.caffemodel"}
    assert bridge.load(tmp_path / "e.onnx").layers


# -- standard streams ------------------------------------------------------------------------------

COMMANDS = ["--help", "info {w}", "info {w} --json", "verify {w} --engines none", "verify --list-checks", "doctor",
            "convert {w} -o {folder}/o.npz"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_pipe_is_no_difference(command: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = run(*command.format(w=WEIGHTS, folder=tmp_path).split(), stdout=writing)
    os.close(writing)
    assert found.returncode in (0, 141)
    assert b"Traceback" not in found.stderr
    assert b"Exception" not in found.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("command", "status"), [("info {w}", 0), ("info gone", 2), ("convert {w} -o {folder}/o.npz", 0)]
)
def test_closed_streams(closed: tuple[int, ...], command: str, status: int, tmp_path: Path) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    found = run(*command.format(w=WEIGHTS, folder=tmp_path).split(), preexec_fn=close)
    assert found.returncode == status
    if command.startswith("convert"):
        assert bridge.load(tmp_path / "o.npz").layers


def test_a_full_device_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        found = run("info", WEIGHTS, stdout=full)
    assert found.returncode == 2
    assert found.stderr.count(b"\n") == 1
    assert b"No space left" in found.stderr


# -- sources that change ---------------------------------------------------------------------------


def containers(tmp_path: Path) -> dict[str, Path]:
    net = bridge.load(DEPLOY, WEIGHTS)
    found = {}
    for suffix in (".caffemodel", ".npz", ".safetensors"):
        found[suffix] = tmp_path / f"a{suffix}"
        bridge.save(net, found[suffix])
    return found


@pytest.mark.parametrize("suffix", [".caffemodel", ".npz", ".safetensors"])
@pytest.mark.parametrize("change", ["cut", "written"])
def test_a_source_that_changed_is_noticed(suffix: str, change: str, tmp_path: Path) -> None:
    path = containers(tmp_path)[suffix]
    net = bridge.load(path)
    if change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = path.read_bytes()
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError, match=r"when it was opened|since it was opened"):
        [array.sum() for layer in net for array in layer.blobs.values()]


def test_hdf5_that_was_written_over_is_noticed(tmp_path: Path) -> None:
    need("h5py")
    import h5py

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data/a/0", data=np.zeros((4, 4), "f4"), chunks=(2, 2), compression=1)
    net = bridge.load(path)
    path.write_bytes(WEIGHTS.read_bytes())
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError):
        net["a"].blobs["blob0"].sum()


def test_a_source_that_was_replaced_lives_on(tmp_path: Path) -> None:
    path = containers(tmp_path)[".caffemodel"]
    net, same = bridge.load(path), bridge.load(WEIGHTS)
    path.unlink()
    path.write_bytes(b"another file")
    for layer, other in zip(net, same, strict=True):
        for role, array in layer.blobs.items():
            assert np.array_equal(array, other.blobs[role])
    bridge.save(net, tmp_path / "b.npz")


def test_a_source_that_changes_while_it_is_written_leaves_the_target(tmp_path: Path) -> None:
    path = containers(tmp_path)[".caffemodel"]
    (tmp_path / "b.npz").write_bytes(b"old")
    net = bridge.load(path)
    [array.sum() for layer in net for array in layer.blobs.values()]
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError):
        bridge.save(net, tmp_path / "b.npz")
    assert (tmp_path / "b.npz").read_bytes() == b"old"


@pytest.mark.parametrize("option", ["source", "digest"])
def test_a_source_that_was_replaced_is_not_referred_to(option: str, model: tuple[Path, Path], tmp_path: Path) -> None:
    net = bridge.load(*model)
    model[1].unlink()
    model[1].write_bytes(WEIGHTS.read_bytes()[::-1])
    given: dict[str, Any] = {"external_data": "source"} if option == "source" else {"digest": True}
    with pytest.raises(ChangedError, match="was replaced by another file"):
        bridge.export_onnx(net, tmp_path / "e.onnx", check=False, **given)
    assert not (tmp_path / "e.onnx").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="the system has no SIGBUS")
def test_a_mapped_file_that_is_cut_short_ends_in_one_line(tmp_path: Path) -> None:
    values = np.ones((500, 1000))
    layer = parse('name: "l" type: "InnerProduct"')
    (tmp_path / "a.caffemodel").write_bytes(encode.net([(layer, [encode.blob(values, "packed")])], "V2", Message()))
    code = (
        "import os, sys, bridge; from bridge.cli import streams; streams.prepare()\n"
        "arrays = [a for layer in bridge.load(sys.argv[1]) for a in layer.blobs.values()]\n"
        "os.truncate(sys.argv[1], 100); print(sum(a.sum() for a in arrays))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.caffemodel")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert (found.returncode, found.stdout) == (2, b"")
    first, second = found.stderr.decode().splitlines()
    assert first.endswith(f"a.caffemodel: has 100 bytes, and had {2_000_000 + 26} when it was opened") or "had" in first
    assert second.startswith("  hint: ")


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
