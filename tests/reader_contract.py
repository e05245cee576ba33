"""What every reader promises, as one class of tests.

A reader's tests inherit it in three lines::

    class TestContract(ReaderContract):
        reader = "npz"
        suffix = ".npz"
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import BridgeError, FormatError, MissingFileError, ModelError, UnsupportedLayerError
from bridge.files import readers
from bridge.schema import Layer, Net
from tests.conftest import FASHION, GOLDEN, need

CASES = [FASHION, *GOLDEN]


def weights_of(case: Path) -> Path:
    """The caffemodel of a fixture."""
    return next(case.glob("*.caffemodel"))


def values(net: Net) -> list[np.ndarray]:
    """Every array, read."""
    return [array for layer in net for array in layer.blobs.values()]


def recorded(case: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inputs that Caffe was given, and the blobs that it computed."""
    with np.load(case / "io.npz") as file:
        arrays = {key: file[key] for key in file if ":" in key}
    inputs = {key[3:]: value for key, value in arrays.items() if key.startswith("in:")}
    return inputs, {key.split(":", 1)[1]: value for key, value in arrays.items() if not key.startswith("in:")}


class ReaderContract:
    """Inherit, and name the reader.

    Attributes:
        reader: Its name in the table.
        suffix: Of the files that it reads and ``bridge.save`` writes; empty if it reads caffemodels.
        single: Whether it delivers float32 whatever the file has.
        options: For its ``read``.
    """

    reader: str
    suffix = ""
    single = False
    options: dict[str, Any] = {}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        need(*readers.find(self.reader).needs)

    def write(self, net: Net, weights: Path, folder: Path) -> Path:
        """A file of the reader's kind with the net's weights."""
        if not self.suffix:
            return weights
        path = folder / f"net{self.suffix}"
        bridge.save(net, path)
        return path

    def load(self, *files: str | Path) -> Net:
        return bridge.load(*files, reader=self.reader, **self.options)

    def whole(self, tmp_path: Path) -> Path:
        """A good file."""
        weights = weights_of(FASHION)
        return self.write(bridge.load(weights, FASHION / "deploy.prototxt"), weights, tmp_path)

    # -- what it delivers ------------------------------------------------------------------

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_same_bits_as_protobuf(self, case: Path, tmp_path: Path) -> None:
        definition = case / "deploy.prototxt"
        expected = bridge.load(weights_of(case), definition, reader="protobuf")
        try:
            found = self.load(self.write(expected, weights_of(case), tmp_path), definition)
        except UnsupportedLayerError as error:
            pytest.skip(f"{self.reader} cannot: {error.args[0]}")
        assert [(layer.name, layer.type) for layer in found] == [(layer.name, layer.type) for layer in expected]
        for ours, theirs in zip(found, expected, strict=True):
            self.same(ours, theirs)

    def same(self, ours: Layer, theirs: Layer) -> None:
        if ours.uncovered:
            assert not ours.blobs
            return
        assert list(ours.blobs) == list(theirs.blobs)
        for role, blob in theirs.blobs.entries():
            stored = blob.numpy().astype(np.float32) if self.single else blob.numpy()
            array = ours.blobs[role]
            assert (array.shape, array.dtype) == (stored.shape, stored.dtype)
            assert array.tobytes() == stored.tobytes()

    def test_says_what_it_read(self, tmp_path: Path) -> None:
        path = self.whole(tmp_path)
        raw = readers.read(path, FASHION / "deploy.prototxt", self.reader, **self.options)
        assert raw.reader == self.reader
        assert raw.source == str(path)
        for layer in raw.layers:
            assert layer.definition.text("name") == layer.name
            assert layer.definition.text("type") == layer.type

    def test_blobs_are_described_before_they_are_read(self, tmp_path: Path) -> None:
        raw = readers.read(self.whole(tmp_path), FASHION / "deploy.prototxt", self.reader, **self.options)
        blobs = [blob for layer in raw.layers for blob in layer.blobs]
        assert len(blobs) == 10
        for blob in blobs:
            assert blob.dtype.isnative
            assert (blob.numpy().shape, blob.numpy().dtype) == (blob.shape, blob.dtype)
            assert blob.numpy() is blob.numpy()
            assert not blob.numpy().flags.writeable

    def test_locations_are_right(self, tmp_path: Path) -> None:
        raw = readers.read(self.whole(tmp_path), FASHION / "deploy.prototxt", self.reader, **self.options)
        for blob in (blob for layer in raw.layers for blob in layer.blobs):
            if blob.location is not None:
                with open(blob.location.path, "rb") as file:
                    file.seek(blob.location.offset)
                    data = file.read(blob.location.nbytes)
                assert data == blob.numpy().astype(blob.dtype.newbyteorder("<")).tobytes()

    def test_arrays_outlive_their_file(self, tmp_path: Path) -> None:
        path = tmp_path / f"copy{self.suffix or '.caffemodel'}"
        path.write_bytes(self.whole(tmp_path).read_bytes())
        net = self.load(path, FASHION / "deploy.prototxt")
        path.unlink()
        assert net["conv1"].weight.tobytes() == bridge.load(weights_of(FASHION))["conv1"].weight.tobytes()

    # -- what it does with bad files -------------------------------------------------------

    def refused(self, path: Path, *kinds: type[BridgeError]) -> BridgeError:
        """The error for a file; one line that names it."""
        with pytest.raises(kinds or (FormatError, ModelError)) as caught:
            values(self.load(path, FASHION / "deploy.prototxt"))
        assert str(path) in caught.value.args[0]
        assert "\n" not in caught.value.args[0]
        return caught.value

    def test_missing_file(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nothing", MissingFileError)

    def test_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, MissingFileError)

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_file(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_bytes(b"x")
        path.chmod(0)
        self.refused(path, MissingFileError)

    def test_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "empty"
        path.touch()
        self.refused(path, BridgeError)

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
    def test_truncated_file(self, part: float, tmp_path: Path) -> None:
        data = self.whole(tmp_path).read_bytes()
        path = tmp_path / "cut"
        path.write_bytes(data[: int(len(data) * part)])
        self.refused(path)
