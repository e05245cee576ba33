"""Whole nets, made at random: the same bits through every reader, the same numbers from every engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st

import bridge
from bridge import engines
from bridge.caffe_files import prototxt
from bridge.files import readers
from bridge.schema import Net
from bridge.verification.compare import same_bits
from bridge.verification.report import Report
from bridge.verification.weights import Files, stored_parts
from tests import encode
from tests.conftest import need
from tests.strategies.nets import WholeNet, whole_nets

# How a generation of files stores values, and shapes; and which readers cover it.
ENCODINGS = [
    ("V2", "packed", "shape", {"protobuf", "caffefunction"}),
    ("V2", "mixed", "shape unpacked", {"protobuf", "caffefunction"}),
    ("V2", "double", "shape", {"protobuf"}),
    ("V2", "half", "shape", {"protobuf"}),
    ("V1", "unpacked", "legacy", {"protobuf", "caffefunction"}),
    ("V1", "double", "legacy", {"protobuf"}),
    ("V0", "packed", "legacy", {"protobuf"}),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples of a test; each writes its files anew."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def write(net: WholeNet, path: Path, generation: str, values: str, shape: str) -> dict[str, list[np.ndarray]]:
    """Write a caffemodel with the tests' own encoder; returns what it stores, by layer."""
    blobs = net.blobs()
    with np.errstate(all="ignore"):
        layers = [
            (layer, [encode.blob(_legacy(array) if shape == "legacy" else array, values, shape) for array in arrays])
            for layer in net.definition.messages("layer")
            if (arrays := blobs.get(layer.text("name"), [])) or layer.text("type") != "Input"
        ]
        path.write_bytes(encode.net(layers, generation))
        return {name: [encode.stored(array, values) for array in arrays] for name, arrays in blobs.items()}


def _legacy(array: np.ndarray) -> np.ndarray:
    """Four axes, as Caffe wrote every blob before 2015."""
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def names_of_readers(path: Path) -> list[str]:
    return [name for name in readers.readers_of(path) if readers.status(name).works]


def encoding_id(value: object) -> str:
    """The same in every worker, where the order of a set is not."""
    return "+".join(sorted(value)) if isinstance(value, set) else str(value)


@pytest.mark.parametrize(("generation", "values", "shape", "covering"), ENCODINGS, ids=encoding_id)
@given(data=st.data())
def test_every_reader_delivers_the_bits_that_were_written(
    folder: Path, generation: str, values: str, shape: str, covering: set[str], data: st.DataObject
) -> None:
    net = data.draw(whole_nets(generation, awkward=True))
    note(net.text)
    assume(net.shapes)
    deploy, file = folder / "deploy.prototxt", folder / "net.caffemodel"
    deploy.write_text(net.text)
    expected = write(net, file, generation, values, shape)
    covered = set()
    for name in names_of_readers(file):
        try:
            found = stored_parts(Files.of([deploy, file], {}).read(name))
        except bridge.BridgeError:
            assert name not in covering
            continue
        covered.add(name)
        assert {key[0] for key in found} == set(expected)
        for (layer, _, index), part in found.items():
            if part.blob is None:
                assert name != "protobuf"
                assert part.why
                continue
            array = part.blob.numpy()
            wanted = expected[layer][index]
            with np.errstate(all="ignore"):
                if name == "caffefunction":  # takes each value through a double, where a signalling NaN turns quiet
                    wanted = wanted.astype(np.float64)
                wanted = wanted.astype(array.dtype)
            assert array.dtype == (expected[layer][index].dtype if name == "protobuf" else np.float32)
            assert same_bits(array, wanted), f"{name}: {layer}[{index}]"
    assert covered >= covering & set(names_of_readers(file))


def compare(*files: Path, **options: object) -> Report:
    return bridge.verify(*files, **{"engines": (), "readers": (), "checks": (), **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["caffemodel", "caffemodel.h5", "npz", "safetensors"])
@given(net=whole_nets(awkward=True))
def test_every_format_keeps_the_bits(folder: Path, suffix: str, net: WholeNet) -> None:
    need(*(["h5py"] if suffix == "caffemodel.h5" else []))
    note(net.text)
    assume(net.shapes)
    deploy, file, other = folder / "deploy.prototxt", folder / "net.caffemodel", folder / f"copy.{suffix}"
    deploy.write_text(net.text)
    write(net, file, "V2", "packed", "shape")
    bridge.save(bridge.load(deploy, file), other)
    report = compare(deploy, file, against=other)
    assert report.passed, str(report)
    assert report.weights[0].count("same") == sum(map(len, net.blobs().values()))


@given(net=whole_nets(awkward=True))
def test_a_net_does_not_differ_from_itself(folder: Path, net: WholeNet) -> None:
    note(net.text)
    assume(net.shapes)
    file = folder / "net.caffemodel"
    write(net, file, "V2", "packed", "shape")
    report = compare(file, against=file)
    assert report.differences == []
    assert report.weights[0].count("same") == len(report.weights[0].blobs)


@given(net=whole_nets(awkward=True), data=st.data())
def test_any_bit_of_any_blob_is_found_from_either_side(folder: Path, net: WholeNet, data: st.DataObject) -> None:
    note(net.text)
    assume(net.shapes)
    a, b = folder / "a.caffemodel", folder / "b.caffemodel"
    write(net, a, "V2", "packed", "shape")
    found = stored_parts(Files.of(a, {}).read())
    layer, _, index = data.draw(st.sampled_from(sorted(found)))
    blob = found[layer, 0, index].blob
    assert blob is not None
    assert blob.location is not None
    place = data.draw(st.integers(0, 8 * blob.nbytes - 1))
    changed = bytearray(a.read_bytes())
    changed[blob.location.offset + place // 8] ^= 1 << place % 8
    b.write_bytes(changed)
    (there,), (back,) = compare(a, against=b).differences, compare(b, against=a).differences
    for difference in (there, back):
        assert difference.layer == layer
        assert difference.index == np.unravel_index(place // 32, blob.shape)
        assert difference.differing == 1
    assert there.values == back.values[::-1]


@given(net=whole_nets(run=True))
def test_every_engine_computes_the_same(folder: Path, net: WholeNet) -> None:
    need("onnxruntime", "chainer")
    note(net.text)
    deploy, file = folder / "deploy.prototxt", folder / "net.caffemodel"
    deploy.write_text(net.text)
    bridge.save(net.net(), file)
    report = bridge.verify(deploy, file, readers=(), checks=(), seed=net.seed)
    assert report.passed, str(report)
    assert len(report.outputs) == len(engines.available()) - 1
    assert all(result.count("different") + result.count("not compared") == 0 for result in report.outputs)


@pytest.mark.process
@given(net=whole_nets(run=True))
def test_every_export_computes_the_same(folder: Path, net: WholeNet) -> None:
    need("onnxruntime")
    note(net.text)
    deploy, file, exported = folder / "deploy.prototxt", folder / "net.caffemodel", folder / "net.onnx"
    deploy.write_text(net.text)
    whole: Net = net.net()
    bridge.save(whole, file)
    bridge.export_onnx(whole, exported, check=False)
    report = bridge.verify(deploy, file, against=exported, engines=["onnxruntime"], readers=(), checks=())
    assert report.passed, str(report)


def test_an_example_prints_as_a_prototxt_that_can_be_pasted() -> None:
    from hypothesis import find

    smallest = find(whole_nets(run=True), lambda net: "group: 2" in net.text)
    definition = prototxt.parse(smallest.text)
    assert [layer.text("type") for layer in definition.messages("layer")][:2] == ["Input", "Convolution"]
    assert smallest.net().infer()
