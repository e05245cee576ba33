"""Reader ``hdf5``: files that the real Caffe wrote, and files that only look like it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import BridgeError, FormatError
from bridge.files import readers
from tests.conftest import FIXTURES, need
from tests.reader_contract import ReaderContract

HDF5 = FIXTURES / "hdf5"
GOLDEN_CASES = ["net_siamese_shared", "net_alexnet_mini", "lstm"]


@pytest.fixture(scope="module")
def h5py() -> Any:
    need("h5py")
    import h5py

    return h5py


class TestContract(ReaderContract):
    reader = "hdf5"
    suffix = ".caffemodel.h5"


def same(ours: bridge.Net, theirs: bridge.Net) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.name, a.uncovered, list(a.blobs)) == (b.name, "", list(b.blobs))
        for role in b.blobs:
            assert a.blobs[role].tobytes() == b.blobs[role].tobytes()


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_what_caffe_wrote(case: str, h5py: Any) -> None:
    golden = FIXTURES / "golden" / case
    definition = golden / "deploy.prototxt"
    same(
        bridge.load(HDF5 / f"{case}.caffemodel.h5", definition), bridge.load(golden / "weights.caffemodel", definition)
    )


def test_one_of_two_blobs_is_shared(h5py: Any) -> None:
    net = bridge.load(HDF5 / "tied.caffemodel.h5", HDF5 / "tied.prototxt")
    same(net, bridge.load(HDF5 / "tied.caffemodel", HDF5 / "tied.prototxt"))
    assert net["a"].blobs.blob("weight").origin is net["b"].blobs.blob("weight").origin


def test_without_prototxt_a_sharing_layer_is_uncovered(h5py: Any) -> None:
    layers = {layer.name: layer for layer in readers.read(HDF5 / "tied.caffemodel.h5").layers}
    assert len(layers["a"].blobs) == 2
    assert layers["b"].blobs == ()
    assert layers["b"].uncovered == "blob 0 is shared with another layer; the prototxt tells which"


def test_values_are_views_into_the_file(h5py: Any) -> None:
    raw = readers.read(HDF5 / "net_alexnet_mini.caffemodel.h5")
    assert all(blob.location for layer in raw.layers for blob in layer.blobs)


# -- other ways to store an array --------------------------------------------------------------


def file_with(h5py: Any, path: Path, **options: Any) -> np.ndarray:
    values = np.arange(600, dtype=options.pop("dtype", "f4")).reshape(20, 30)
    with h5py.File(path, "w", userblock_size=options.pop("userblock_size", 0)) as file:
        file.create_dataset("data/ip/0", data=values, **options)
    return values


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (7, 7)},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"dtype": ">f8"},
        {"dtype": "<f2"},
    ],
    ids=str,
)
def test_other_layouts(options: dict[str, Any], h5py: Any, tmp_path: Path) -> None:
    values = file_with(h5py, tmp_path / "a.h5", **options)
    (layer,) = readers.read(tmp_path / "a.h5").layers
    (blob,) = layer.blobs
    assert blob.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(blob.numpy(), values)


def test_layers_with_slashes_and_any_script(h5py: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("inception/1x1", "inception/3x3/b", "inception", "畳み込み 1"):
            file.create_dataset(f"data/{name}/0", data=np.ones(1, "f4"))
        file.create_group("data/relu")
    names = {layer.name: len(layer.blobs) for layer in readers.read(tmp_path / "a.h5").layers}
    assert names == {"inception/1x1": 1, "inception/3x3/b": 1, "inception": 1, "畳み込み 1": 1, "relu": 0}


# -- what is refused ---------------------------------------------------------------------------


def arrays(path: Path) -> list[np.ndarray]:
    return [blob.numpy() for layer in readers.read(path).layers for blob in layer.blobs]


def refused(path: Path, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        arrays(path)
    assert str(path) in caught.value.args[0]


def test_links_are_not_followed(h5py: Any, tmp_path: Path) -> None:
    file_with(h5py, tmp_path / "secret.h5")
    for link in (h5py.ExternalLink("secret.h5", "/data/ip/0"), h5py.SoftLink("/data/ip/0")):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["data/ip/0"] = link
        refused(tmp_path / "a.h5", r"/data/ip/0: a \w+Link, which is not followed")


@pytest.mark.parametrize("name", ["data", "data/ip"])
def test_links_as_groups_are_not_followed(name: str, h5py: Any, tmp_path: Path) -> None:
    file_with(h5py, tmp_path / "secret.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = h5py.ExternalLink("secret.h5", name)
    refused(tmp_path / "a.h5", "a ExternalLink, which is not followed")


def test_external_storage_is_not_read(h5py: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data/ip/0", (4,), "f4", external=[(str(tmp_path / "secret"), 0, 16)])
    refused(tmp_path / "a.h5", "lie in other files")


def test_virtual_data_set_is_not_read(h5py: Any, tmp_path: Path) -> None:
    file_with(h5py, tmp_path / "secret.h5")
    layout = h5py.VirtualLayout((20, 30), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "data/ip/0", (20, 30))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("data/ip").create_virtual_dataset("0", layout)
    refused(tmp_path / "a.h5", "lie in other files")


def test_claim_of_a_huge_array(h5py: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data/ip/0", (1 << 40,), "f4", chunks=(1 << 10,))
    refused(tmp_path / "a.h5", "4398046511104 bytes, of which the file has 0")


def test_cycles_end(h5py: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("data/a/b")
        file["data/a/b/c"] = file["data/a"]
    refused(tmp_path / "a.h5", "is linked to twice")


def test_deep_nesting_ends(h5py: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("data" + "/a" * 500)
    refused(tmp_path / "a.h5", "nested deeper than 16")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", np.ones(3), "has no group /data"),
        ("model_weights/dense/kernel", np.ones(3), "has no group /data"),
        ("history/0", np.ones(3), "a solverstate"),
        ("data/0", np.ones(3), "is a data set, expected a layer's group"),
        ("data/ip/weight", np.ones(3), "is a data set, expected a layer's group"),
        ("data/ip/0", np.ones(3, "i4"), "has type int32"),
        ("data/ip/0", b"text", "has type"),
    ],
)
def test_other_content(name: str, value: Any, message: str, h5py: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = value
    refused(tmp_path / "a.h5", message)


@pytest.mark.slow
def test_every_changed_byte_gives_a_net_or_an_error(h5py: Any, tmp_path: Path) -> None:
    data = (HDF5 / "tied.caffemodel.h5").read_bytes()
    path = tmp_path / "a.h5"
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with contextlib.suppress(BridgeError):
            arrays(path)
