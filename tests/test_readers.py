"""The table of readers, the choice by content, and the readers of what the tool itself writes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import BridgeError, FormatError, MissingExtraError, MissingFileError, UsageError
from bridge.extras import pip
from bridge.files import readers
from bridge.files.sniff import KINDS
from bridge.layers.batch_norm import BatchNorm
from bridge.schema import Blob, Blobs, Layer, Net
from tests.conftest import FASHION, ROOT
from tests.reader_contract import ReaderContract

MODEL, DEPLOY = FASHION / "fashion_alexnet.caffemodel", FASHION / "deploy.prototxt"


# -- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", readers.READERS.values(), ids=lambda reader: reader.name)
def test_table_tells_of_each_module_what_it_is(reader: readers.Reader) -> None:
    read = importlib.import_module(reader.module).read
    parameters = inspect.signature(read).parameters
    assert list(parameters)[:2] == ["path", "prototxt"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for name, parameter in parameters.items() if name != "path")
    assert set(parameters) - {"path", "prototxt", "definition"} == set(reader.options)
    assert ("definition" in parameters) == reader.defined
    assert set(reader.kinds) <= {kind.name for kind in KINDS.values() if not kind.problem}


def test_every_backend_is_in_the_table_and_has_contract_tests() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for name in readers.READERS:
        assert f'    reader = "{name}"\n' in tests, f"no test class inherits ReaderContract for {name}"


def test_every_kind_of_weights_has_a_reader() -> None:
    read = {kind for reader in readers.READERS.values() for kind in reader.kinds}
    assert read == {kind.name for kind in KINDS.values() if not kind.problem} - {"prototxt"}


def test_importing_the_table_imports_no_reader() -> None:
    names = "[m for m in sys.modules if m.startswith(('backends', 'h5py', 'onnx'))]"
    code = f"import sys, bridge.files.readers; print({names})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == "[]"


def test_status_of_a_reader_whose_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status = readers.status("hdf5")
    assert not status.works
    assert (status.problem, status.hint) == ("h5py is not installed", pip("hdf5"))


def test_reading_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="h5py is not installed"):
        readers.read(path)


# -- FILES -------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [(DEPLOY, MODEL), (MODEL, DEPLOY)])
def test_files_are_told_apart_by_content(files: tuple[Path, ...]) -> None:
    assert readers.split_files(files) == (DEPLOY, MODEL)


def test_one_file_alone() -> None:
    assert readers.split_files([str(MODEL)]) == (None, MODEL)
    assert readers.split_files([DEPLOY]) == (DEPLOY, None)


@pytest.mark.parametrize("files", [(), (MODEL, DEPLOY, MODEL), (MODEL, MODEL), (DEPLOY, DEPLOY)])
def test_files_that_make_no_model(files: tuple[Path, ...]) -> None:
    with pytest.raises(UsageError):
        readers.split_files(files)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="No such file"):
        readers.split_files([tmp_path / "nothing"])
    with pytest.raises(MissingFileError, match="is a folder"):
        readers.split_files([tmp_path])


# -- the choice --------------------------------------------------------------------------------


def test_suffix_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "model.prototxt"
    path.write_bytes(MODEL.read_bytes())
    assert bridge.load(path).reader == "protobuf"


def test_named_reader_for_other_content() -> None:
    with pytest.raises(UsageError, match="holds caffemodel, which reader 'npz' does not read"):
        readers.read(MODEL, reader="npz")


def test_prototxt_given_as_weights() -> None:
    with pytest.raises(FormatError, match="holds prototxt, expected weights"):
        readers.read(DEPLOY)


def test_unknown_reader_and_option() -> None:
    with pytest.raises(UsageError, match="no reader 'caffe3'"):
        readers.read(MODEL, reader="caffe3")
    with pytest.raises(UsageError, match="no reader has an option 'pyton'"):
        readers.read(MODEL, pyton="python")


def test_options_of_other_readers_are_left_out() -> None:
    assert readers.read(MODEL, python="python").reader == "protobuf"


def test_readers_of_a_file() -> None:
    assert readers.readers_of(MODEL) == ["protobuf", "caffefunction", "pycaffe"]
    assert readers.readers_of(DEPLOY) == []


# -- readers with tests of their own elsewhere -------------------------------------------------


class TestProtobuf(ReaderContract):
    reader = "protobuf"


class TestCaffeFunction(ReaderContract):
    reader = "caffefunction"
    single = True


# -- npz ---------------------------------------------------------------------------------------


class TestNpz(ReaderContract):
    reader = "npz"
    suffix = ".npz"

    def test_every_changed_byte_is_noticed_or_harmless(self, tmp_path: Path) -> None:
        path = tmp_path / "small.npz"
        np.savez(path, **{"ip/0": np.arange(6, dtype=np.float32).reshape(2, 3), "ip/1": np.zeros(2, np.float32)})
        data, changed = path.read_bytes(), tmp_path / "changed.npz"
        whole = arrays(path)
        for at in range(len(data)):
            changed.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            try:
                found = arrays(changed)
            except BridgeError:
                continue
            for name in found.keys() & whole.keys():
                assert all(np.array_equal(a, b) for a, b in zip(found[name], whole[name], strict=False)), at

    def test_compressed(self, tmp_path: Path) -> None:
        path = tmp_path / "packed.npz"
        np.savez_compressed(path, **{"ip/0": np.zeros((1000, 300), np.float32)})
        assert arrays(path)["ip"][0].shape == (1000, 300)

    @pytest.mark.parametrize("array", [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6, dtype=">f4")])
    def test_order_and_byte_order(self, array: np.ndarray, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **{"ip/0": array})
        assert np.array_equal(arrays(tmp_path / "a.npz")["ip"][0], array)

    def test_pickled_array_is_not_loaded(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **{"other": np.array([{}], object), "ip/0": np.ones(2)})
        raw = readers.read(tmp_path / "a.npz")
        assert raw.notes == ("array 'other' is no blob: it has type object",)

    def test_claim_of_a_huge_array(self, tmp_path: Path) -> None:
        member = io.BytesIO()
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 60,)})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("ip/0.npy", member.getvalue())
        with pytest.raises(FormatError, match="array 'ip/0': has 0 bytes, expected 4611686018427387904"):
            readers.read(tmp_path / "a.npz")

    @pytest.mark.parametrize("header", ["{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "x", ""])
    def test_header_that_is_no_plain_array(self, header: str, tmp_path: Path) -> None:
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("ip/0.npy", data)
        with pytest.raises(FormatError, match="is no plain array"):
            readers.read(tmp_path / "a.npz")


def arrays(path: Path) -> dict[str, list[np.ndarray]]:
    return {layer.name: [blob.numpy() for blob in layer.blobs] for layer in readers.read(path).layers}


# -- arrays without a definition ---------------------------------------------------------------


def plain(keys: dict[str, str], path: Path) -> Path:
    """An npz with the model's arrays under other names; ``{}`` stands for the layer."""
    net = bridge.load(MODEL)
    named = {
        (layer.name, role): array for layer in net for role, array in reversed(list(layer.blobs.items()))
    }  # bias first: the order in the file must not count
    np.savez(path, **{keys[role].format(layer): array for (layer, role), array in named.items()})
    return path


@pytest.mark.parametrize(
    "keys", [{"weight": "{}/0", "bias": "{}/1"}, {"weight": "{}/weight", "bias": "{}/bias"},
             {"weight": "{}.weight", "bias": "{}.bias"}, {"weight": "{}/W", "bias": "{}/b"}],
    ids=["index", "role", "dotted", "chainer"],
)  # fmt: skip
def test_plain_npz_with_a_prototxt(keys: dict[str, str], tmp_path: Path) -> None:
    net = bridge.load(DEPLOY, plain(keys, tmp_path / "plain.npz"))
    for ours, theirs in zip(net, bridge.load(DEPLOY, MODEL), strict=True):
        assert list(ours.blobs) == list(theirs.blobs)
        assert all(np.array_equal(ours.blobs[role], theirs.blobs[role]) for role in ours.blobs)


def test_plain_npz_whose_arrays_are_not_the_layers(tmp_path: Path) -> None:
    path = plain({"weight": "{}/kernel", "bias": "{}/bias"}, tmp_path / "plain.npz")
    with pytest.raises(FormatError, match="layer 'conv1' has arrays bias, kernel, expected weight, bias"):
        bridge.load(DEPLOY, path)


def test_plain_npz_with_a_gap(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"ip/0": np.ones(1), "ip/2": np.ones(1)})
    with pytest.raises(FormatError, match="layer 'ip' has arrays 0, 2, expected 0, 1"):
        readers.read(tmp_path / "a.npz")


# -- safetensors -------------------------------------------------------------------------------


class TestSafetensors(ReaderContract):
    reader = "safetensors"
    suffix = ".safetensors"

    def file(self, tmp_path: Path, header: object, data: bytes = b"") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return path

    def test_what_the_library_writes(self, tmp_path: Path) -> None:
        library = pytest.importorskip("safetensors.numpy", reason="package safetensors is not installed")
        given = {"ip/0": np.arange(6, dtype=np.float64).reshape(2, 3), "ip/1": np.ones(2, np.float16)}
        library.save_file(given, tmp_path / "a.safetensors")
        found = arrays(tmp_path / "a.safetensors")["ip"]
        assert [array.dtype for array in found] == [np.float64, np.float16]
        assert all(np.array_equal(a, b) for a, b in zip(found, given.values(), strict=True))

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "an array ends here"),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "an array ends here"),
            ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "is not described"),
            ({"a": {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 4]}}, "has 4 bytes, expected"),
            ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "is not described"),
            ({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, "has type BF16"),
            ({"a": []}, "is not described"),
            ({"__metadata__": 1}, "__metadata__ is not"),
            (b"{" * 5000, "is not JSON"),
            (b"{}" + b"\xff" * 7, "is not JSON"),
        ],
    )  # fmt: skip
    def test_header_that_lies(self, header: object, message: str, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=message):
            readers.read(self.file(tmp_path, header, b"\0" * 4))

    @pytest.mark.parametrize(
        ("spans", "end"),
        [
            ([(0, 4), (8, 12)], 4),  # a gap between two arrays
            ([(4, 8), (8, 12)], 0),  # before the first
            ([(0, 4), (4, 8)], 8),  # behind the last
            ([(0, 8), (4, 12)], 8),  # an overlap
        ],
    )
    def test_arrays_that_leave_gaps_or_overlap(self, spans: list[tuple[int, int]], end: int, tmp_path: Path) -> None:
        header = {
            name: {"dtype": "F32", "shape": [(last - first) // 4], "data_offsets": [first, last]}
            for name, (first, last) in zip("ab", spans, strict=True)
        }
        path = self.file(tmp_path, header, b"\0" * 12)
        at = path.stat().st_size - 12 + end
        with pytest.raises(FormatError, match=f"byte {at}: an array ends here"):
            readers.read(path)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (b'{"a": [' + b"1," * (1 << 21), "byte 8: the header has more than .* values"),
            (b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "byte 8: .* half a character"),
            ('{"é/0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.encode(), ""),
        ],
        ids=["values without end", "half a character", "a character"],
    )
    def test_headers_that_no_model_has(self, header: bytes, message: str, tmp_path: Path) -> None:
        path = self.file(tmp_path, header, b"\0" * 4)
        if not message:
            assert [layer.name for layer in readers.read(path).layers] == ["é"]
            return
        with pytest.raises(FormatError, match=message):
            readers.read(path)

    def test_header_longer_than_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes((1 << 30).to_bytes(8, "little") + b"{}")
        with pytest.raises(FormatError, match="header of 1073741824 bytes, of which the file has 2"):
            readers.read(path)


# -- onnx --------------------------------------------------------------------------------------


class TestOnnx(ReaderContract):
    reader = "onnx"
    single = True

    def write(self, net: Net, weights: Path, folder: Path) -> Path:
        from bridge.onnx_export import to_onnx_model

        path = folder / "net.onnx"
        path.write_bytes(to_onnx_model(net)[0].SerializeToString())
        return path

    def same(self, ours: Layer, theirs: Layer) -> None:
        """Statistics have taken in their scale factor."""
        if isinstance(theirs, BatchNorm):
            mean, variance = theirs.statistics_values()
            merged = {"mean": mean, "variance": variance, "scale_factor": np.ones(1, np.float32)}
            blobs = dict(theirs.blobs.entries()) | {role: Blob.of(values) for role, values in merged.items()}
            theirs = dataclasses.replace(theirs, blobs=Blobs(blobs))
        super().same(ours, theirs)

    def test_file_of_another_tool(self, tmp_path: Path) -> None:
        import onnx

        path = self.whole(tmp_path)
        model = onnx.load(path)
        del model.metadata_props[:]
        path.write_bytes(model.SerializeToString())
        with pytest.raises(FormatError, match=r"holds no definition of a Caffe net\n  hint: only what 'bridge export'"):
            readers.read(path)

    def external(self, folder: Path, location: str) -> Path:
        """The model with its arrays in another file, which is said to lie at ``location``."""
        import onnx

        path = self.whole(folder)
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="data.bin", size_threshold=0)
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
        return path

    def test_external_data(self, tmp_path: Path) -> None:
        net = self.load(self.external(tmp_path, "data.bin"))
        assert net["conv1"].weight.tobytes() == bridge.load(MODEL)["conv1"].weight.tobytes()

    @pytest.mark.parametrize("location", ["../data.bin", "/etc/hostname", "link.bin", ""])
    def test_external_data_elsewhere_are_not_read(self, location: str, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        path = self.external(folder, location)
        (tmp_path / "data.bin").write_bytes((folder / "data.bin").read_bytes())
        (folder / "link.bin").symlink_to(tmp_path / "data.bin")
        with pytest.raises(FormatError, match="lie outside the model's folder"):
            readers.read(path)

    def test_external_data_that_are_gone(self, tmp_path: Path) -> None:
        path = self.external(tmp_path, "data.bin")
        (tmp_path / "data.bin").write_bytes(b"short")
        with pytest.raises(FormatError, match=r"begin at byte 0 of .*, which has 5, and have 64"):
            readers.read(path)
        (tmp_path / "data.bin").unlink()
        with pytest.raises(MissingFileError, match=r"data\.bin"):
            readers.read(path)


# -- the texts of a whole model ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        ("[", "is not JSON"),
        ("{}", "is no list, expected a list of blobs"),
        (
            '[{"index": 9, "role": "weight", "key": "a", "shape": [2]}]',
            r"bridge.blobs\[0\]: does not name an array, expected index",
        ),
        ('[{"index": 0, "role": "weight", "key": "b", "shape": [2]}]', "no array 'b'"),
        ('[{"index": 0, "role": "weight", "key": "a", "shape": [3]}]', "has 2 values, expected 3 = 3"),
        ('[{"index": 0, "role": "weight", "key": "a", "shape": [-2]}]', "is not a shape"),
        (
            '[{"index": 9, "role": "weight", "value": 1, "shape": [1]}]',
            r"bridge.blobs\[0\]: does not name an array, expected index",
        ),
        ('[{"index": 0, "role": "weight", "value": "1", "shape": [1]}]', "no array 'None'"),
    ],
)
def test_texts_that_do_not_fit(blobs: str, message: str, tmp_path: Path) -> None:
    texts = {"bridge.prototxt": 'layer { name: "l" type: "Odd" }', "bridge.blobs": blobs}
    np.savez(tmp_path / "a.npz", a=np.ones(2), __bridge__=np.frombuffer(json.dumps(texts).encode(), np.uint8))
    with pytest.raises(FormatError, match=message):
        readers.read(tmp_path / "a.npz")


def test_layer_of_which_blobs_are_gone_is_uncovered(tmp_path: Path) -> None:
    texts = {
        "bridge.prototxt": 'layer { name: "l" type: "InnerProduct" inner_product_param { num_output: 2 } }',
        "bridge.blobs": '[{"index": 0, "role": "bias", "key": "a", "shape": [2]}]',
    }
    np.savez(tmp_path / "a.npz", a=np.ones(2), __bridge__=np.frombuffer(json.dumps(texts).encode(), np.uint8))
    (layer,) = readers.read(tmp_path / "a.npz").layers
    assert (layer.blobs, layer.uncovered) == ((), "of its blobs the file has only bias")


def test_a_blob_of_one_value_needs_no_array(tmp_path: Path) -> None:
    texts = {
        "bridge.prototxt": 'layer { name: "l" type: "BatchNorm" bottom: "x" top: "y" }',
        "bridge.blobs": json.dumps(
            [{"index": 0, "role": role, "key": "a", "shape": [2]} for role in ("mean", "variance")]
            + [{"index": 0, "role": "scale_factor", "value": 1, "shape": [1]}]
        ),
    }
    np.savez(tmp_path / "a.npz", a=np.ones(2), __bridge__=np.frombuffer(json.dumps(texts).encode(), np.uint8))
    net = readers.read(tmp_path / "a.npz")
    assert [blob.shape for blob in net.layers[0].blobs] == [(2,), (2,), (1,)]
    assert net.layers[0].reworked.startswith("the export merged its scale_factor")
    assert net.notes == (f"layer 'l' (BatchNorm): {net.layers[0].reworked}",)
