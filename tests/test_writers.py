"""Writers: nothing is lost, the file appears whole or not at all, others can read it."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import bridge
from backends.pycaffe import Session
from bridge.caffe_files.prototxt import parse
from bridge.errors import MissingExtraError, ModelError, UnsupportedLayerError, UsageError
from bridge.files import readers, writers
from bridge.files.atomic import PIECE, pieces
from bridge.files.writers import hdf5, npz, safetensors
from bridge.schema import Blob, Blobs, Net, Opaque
from tests.conftest import FASHION, GOLDEN, ROOT, need
from tests.reader_contract import recorded, weights_of
from tests.strategies import files as strategies

MODEL, DEPLOY = FASHION / "fashion_alexnet.caffemodel", FASHION / "deploy.prototxt"
SUFFIXES = [".npz", ".safetensors", ".caffemodel", ".caffemodel.h5", ".chainer.npz"]


def needs(suffix: str) -> None:
    need(*{".caffemodel.h5": ["h5py"], ".chainer.npz": ["chainer"]}.get(suffix, []))


def same(ours: Net, theirs: Net, dtype: Any = None) -> None:
    """Equal layers, and equal bits in every blob."""
    assert [(layer.name, layer.type) for layer in ours] == [(layer.name, layer.type) for layer in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.uncovered, list(a.blobs)) == ("", list(b.blobs)), b.label
        for role in b.blobs:
            array = b.blobs[role].astype(dtype or b.blobs[role].dtype)
            assert (a.blobs[role].dtype, a.blobs[role].shape) == (array.dtype, array.shape)
            assert a.blobs[role].tobytes() == array.tobytes()


# -- nothing is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".caffemodel"])
@pytest.mark.parametrize("case", [FASHION, *GOLDEN], ids=lambda case: case.name)
def test_written_file_is_a_whole_model(case: Path, suffix: str, tmp_path: Path) -> None:
    net = bridge.load(weights_of(case), case / "deploy.prototxt")
    bridge.save(net, tmp_path / f"net{suffix}")
    back = bridge.load(tmp_path / f"net{suffix}")
    same(back, net)
    assert back.name == net.name
    assert back.definition == net.definition
    assert [layer.definition for layer in back] == [layer.definition for layer in net]


@pytest.mark.parametrize("case", [FASHION, *GOLDEN], ids=lambda case: case.name)
def test_chainer_fills_the_built_chain_from_its_npz(case: Path, tmp_path: Path) -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    path = tmp_path / "net.chainer.npz"
    net = bridge.load(weights_of(case), case / "deploy.prototxt")
    try:
        bridge.save(net, path)
    except UnsupportedLayerError as error:
        pytest.skip(str(error.args[0]))
    same(bridge.load(path), net, np.float32)
    chain = bridge.build_chain(net)
    for param in chain.params():
        param.array[...] = np.nan
    chainer.serializers.load_npz(path, chain)
    same(bridge.from_chain(chain, net), bridge.from_chain(bridge.build_chain(net), net))


@pytest.mark.parametrize("writer", [npz, safetensors], ids=["npz", "safetensors"])
@given(net=strategies.unknown_nets())
def test_any_net(tmp_path_factory: pytest.TempPathFactory, writer: Any, net: Net) -> None:
    path = tmp_path_factory.mktemp("net") / "file"
    with open(path, "wb") as stream:
        writer.write(net, stream)
    back = bridge.load(path)
    same(back, net)
    for index, layer in enumerate(net):
        for role, blob in layer.blobs.entries():
            for other, later in list(zip(net, back, strict=True))[index:]:
                for other_role, other_blob in other.blobs.entries():
                    ours = back.layers[index].blobs.blob(role).origin is later.blobs.blob(other_role).origin
                    assert ours == (blob.origin is other_blob.origin)


@given(net=strategies.unknown_nets())
def test_any_net_as_hdf5(tmp_path_factory: pytest.TempPathFactory, net: Net) -> None:
    need("h5py")
    path = tmp_path_factory.mktemp("net") / "net.h5"
    try:
        bridge.save(net, path)
    except UnsupportedLayerError:
        return
    stored = {layer.name: layer for layer in readers.read(path, DEPLOY).layers}
    owned: set[int] = set()
    for layer in net:
        for index, (_, blob) in enumerate(layer.blobs.entries()):
            if id(blob.origin) not in owned:
                owned.add(id(blob.origin))
                found = stored[layer.name].blobs[index].numpy()
                assert (found.dtype, found.shape, found.tobytes()) == (blob.dtype, blob.shape, blob.numpy().tobytes())


def test_shared_parameters_are_stored_once(tmp_path: Path) -> None:
    need("h5py")
    case = FASHION.parent / "golden" / "net_siamese_shared"
    net = bridge.load(weights_of(case), case / "deploy.prototxt")
    bridge.save(net, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert set(found) == {"__bridge__", "c/weight", "c/bias", "f/weight", "f/bias"}
    bridge.save(net, tmp_path / "a.h5")
    back = bridge.load(tmp_path / "a.h5", case / "deploy.prototxt")
    same(back, net)
    assert back["c"].blobs.blob("weight").origin is back["c_p"].blobs.blob("weight").origin


def test_unknown_fields_of_a_fork_come_back(tmp_path: Path) -> None:
    definition = parse('name: "l" type: "Odd" 143: "\\001\\377" odd_param { x: 1.5 y: HIGH 7: 2 }')
    net = Net("n", (Opaque(name="l", type="Odd", definition=definition),))
    bridge.save(net, tmp_path / "a.npz")
    assert bridge.load(tmp_path / "a.npz").layers[0].definition == definition


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_nets_make_equal_files(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    net = bridge.load(MODEL, DEPLOY)
    for name in ("a", "b"):
        bridge.save(net, tmp_path / f"{name}{suffix}")
        time.sleep(0.01)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# -- others can read it ------------------------------------------------------------------------


def test_numpy_reads_the_npz(tmp_path: Path) -> None:
    net = bridge.load(MODEL, DEPLOY)
    bridge.save(net, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert np.array_equal(found["conv2/weight"], net["conv2"].weight)
        texts = json.loads(found["__bridge__"].tobytes())
    assert set(texts) == {"bridge.version", "bridge.prototxt", "bridge.blobs"}
    assert parse(texts["bridge.prototxt"]).messages("layer")[1].text("name") == "conv1"


def test_the_library_reads_the_safetensors(tmp_path: Path) -> None:
    need("safetensors")
    from safetensors import safe_open

    net = bridge.load(MODEL, DEPLOY)
    bridge.save(net, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "np") as found:
        assert len(list(found.keys())) == 10
        assert np.array_equal(found.get_tensor("conv2/weight"), net["conv2"].weight)
        assert found.metadata()["bridge.version"] == bridge.__version__


@pytest.mark.caffe
@pytest.mark.parametrize("case", [FASHION, *GOLDEN], ids=lambda case: case.name)
def test_caffe_computes_the_same_from_hdf5(case: Path, tmp_path: Path) -> None:
    need("h5py")
    bridge.save(bridge.load(weights_of(case), case / "deploy.prototxt"), tmp_path / "a.caffemodel.h5")
    inputs, _ = recorded(case)
    definition = (case / "deploy.prototxt").read_text()
    try:
        outputs = [
            Session(definition, path).forward(inputs) for path in (weights_of(case), tmp_path / "a.caffemodel.h5")
        ]
    except UnsupportedLayerError as error:
        pytest.skip(f"this build of Caffe cannot: {error.args[0]}")
    for name, values in outputs[0].items():
        assert values.tobytes() == outputs[1][name].tobytes()


# -- the choice of the format ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.npz", "npz"), ("a.NPZ", "npz"), ("a.chainer.npz", "chainer_npz"), ("a.safetensors", "safetensors"),
        ("a.caffemodel", "caffemodel"), ("a.caffemodel.h5", "hdf5"), ("a.h5", "hdf5"),
    ],
)  # fmt: skip
def test_format_by_suffix(path: str, name: str) -> None:
    assert writers.format_of(path).name == name


def test_format_by_name() -> None:
    assert writers.format_of("a.bin", "chainer").name == "chainer_npz"
    with pytest.raises(UsageError, match="no format 'zip'"):
        writers.format_of("a.npz", "zip")
    with pytest.raises(UsageError, match="its suffix is that of no format"):
        writers.format_of("a.bin")
    with pytest.raises(UsageError, match="written by 'bridge export'"):
        writers.format_of("a.onnx")


def test_a_format_takes_its_own_options_only(tmp_path: Path) -> None:
    net = bridge.load(MODEL)
    with pytest.raises(UsageError, match="has no option 'half'\n  hint: it has none"):
        bridge.save(net, tmp_path / "a.npz", half=True)
    with pytest.raises(UsageError, match="no dialect 'nope'"):
        bridge.save(net, tmp_path / "a.caffemodel", dialect="nope")
    assert not list(tmp_path.iterdir())


def test_a_layer_without_its_blobs_is_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "new.prototxt").write_text(DEPLOY.read_text().replace('"fc8"', '"fc8_new"'))
    net = bridge.load(MODEL, tmp_path / "new.prototxt")
    with pytest.raises(ModelError, match=r"layer 'fc8_new' .* cannot be written"):
        bridge.save(net, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_hdf5_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match="h5py is not installed"):
        bridge.save(bridge.load(MODEL, DEPLOY), tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [["."], ["a/../b/."], ["a//b"], ["/a"], ["a\0b"], ["a", "a"], ["a", "a/0"]])
def test_names_that_hdf5_cannot_hold(names: list[str]) -> None:
    need("h5py")
    blob = Blob.of(np.ones(1))
    net = Net("n", tuple(Opaque(name=n, type="Odd", blobs=Blobs({"blob0": blob.reshaped((1, 1))})) for n in names))
    other = [Opaque(name=n, type="Odd", blobs=Blobs({"blob0": Blob.of(np.ones(1))})) for n in names]
    with pytest.raises(UnsupportedLayerError, match="HDF5 cannot hold"):
        hdf5.write(net.replace(layers=tuple(other)), io.BytesIO())


# -- values pass through in pieces -------------------------------------------------------------


def test_pieces_of_every_kind_of_array() -> None:
    big = np.arange(PIECE // 4 + 10, dtype=np.float32)
    for array in (
        big,
        big[::2],
        big[5:].reshape(-1, 1),
        big.astype(">f4"),
        np.float32(3),
        np.zeros((0, 4), np.float32),
    ):
        expected = np.ascontiguousarray(array, "<f4").tobytes()
        assert b"".join(pieces(Blob.of(array))) == expected
    assert b"".join(pieces(Blob.of(big), np.float64)) == big.astype("<f8").tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_converting_a_big_file_needs_little_memory(suffix: str, tmp_path: Path) -> None:
    values = Blob.of(np.broadcast_to(np.float32(1), (40 << 20,)))
    layer = Opaque(name="l", type="Odd", blobs=Blobs({"blob0": values}), definition=parse('name: "l" type: "Odd"'))
    bridge.save(Net("n", (layer,)), tmp_path / "big.caffemodel")
    assert (tmp_path / "big.caffemodel").stat().st_size > 160 << 20
    code = (
        "import resource, sys, bridge; from bridge.files.writers import npz, safetensors\n"
        "net = bridge.load(sys.argv[1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "bridge.save(net, sys.argv[2]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big.caffemodel"), str(tmp_path / f"a{suffix}")]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert kilobytes < 64 << 10, shlex.join(command)
