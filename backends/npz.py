"""Reader of NumPy archives: whole models that the tool wrote, Chainer's, or plain arrays.

Opening reads the archive's directory and the header of each array; values are read, and
their checksum verified, when an array is asked for. Nothing in the file is executed.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from bridge.errors import BridgeError, FormatError
from bridge.files.manifest import TEXTS, restore
from bridge.limits.budget import BUDGET, check_json, parse_json, shape_problem
from bridge.limits.sources import Stamp, check_unchanged, open_file, stamp_of
from bridge.schema import Blob, RawNet, Shape, count

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LONGEST_HEADER = 10_000
"""Characters of a header that are evaluated, which is NumPy's own limit."""
_MALFORMED = (
    AttributeError, LookupError, MemoryError, OverflowError, RecursionError, SyntaxError, TypeError, ValueError,
    tokenize.TokenError,
)  # fmt: skip
"""What NumPy's reading of a header, ``ast.literal_eval`` and ``numpy.dtype``, raises for one that is damaged."""
_STEP = 1 << 20
_DEFLATE = 1032
"""No deflated data expands more than so many times."""
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, OverflowError, struct.error)
"""What :mod:`zipfile` raises for archives that are damaged, encrypted, or packed in an unusual way."""


def read(path: str | Path, *, prototxt: str | Path | None = None) -> RawNet:
    """Read a NumPy archive.

    Args:
        path: The file.
        prototxt: Orders the blobs of each layer where the file has no definition of its own.

    Returns:
        A whole net if the tool wrote the file, else names and blobs. Blobs are float32,
        float64 or float16 as stored; arrays of other types are named in the notes.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is no such archive, or a damaged one.

    Source: NumPy's ``numpy.lib.format``.
    """
    where = str(path)
    with _faults(where):
        archive = zipfile.ZipFile(_Map.open(where))  # type: ignore[call-overload]
        _check_total(archive, where)
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    members = {info.filename: _Member(archive, info, where) for info in infos}
    texts = members.pop(f"{TEXTS}.npy", None)
    blobs = {m.key: Blob(m.shape, m.dtype.newbyteorder("="), m.load) for m in members.values() if m.is_blob}
    others = [f"array '{m.key}' is no blob: it has type {m.dtype}" for m in members.values() if not m.is_blob]
    net = restore(texts.texts() if texts else {}, blobs, prototxt, source=path, reader="npz")
    return dataclasses.replace(net, notes=(*net.notes, *others))


@contextmanager
def _faults(where: str) -> Iterator[None]:
    """Tell of whatever is wrong with an archive as a FormatError."""
    try:
        yield
    except BridgeError:
        raise
    except _FAULTS as error:
        problem = str(error) or "it ends too early"
        hint = "the file is damaged; fetch it again and compare its checksum"
        raise FormatError(problem, where=where, hint=hint) from None


class _Map(mmap.mmap):
    """A mapped file, as an archive is read from: needs no closing, and outlives the file's name."""

    path: str
    stamp: Stamp

    @classmethod
    def open(cls, path: str) -> _Map:
        with open_file(path) as file:
            found = cls(file.fileno(), 0, access=mmap.ACCESS_READ)
            found.path, found.stamp = path, stamp_of(file)
            return found

    def check(self) -> None:
        """Demand that the file still is what it was when it was opened."""
        check_unchanged(self.path, self.stamp)

    def seekable(self) -> bool:  # mmap itself has it from Python 3.13 on
        return True


def _check_total(archive: zipfile.ZipFile, where: str) -> None:
    """Members may not overlap, nor expand together to more than weights do."""
    size, infos = len(archive.fp), archive.infolist()  # type: ignore[arg-type]  # a _Map
    packed = sum(info.compress_size for info in infos)
    if packed > size:
        raise ValueError(f"its members take {packed} bytes, of which the file has {size}")
    BUDGET.expand(size, sum(info.file_size for info in infos), where)


class _Member:
    """An array of an archive, located and described; ``load`` reads its values."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> None:
        self.archive, self.info = archive, info
        self.key = info.filename.removesuffix(".npy")
        self.where = f"{path}: array '{self.key}'"
        with _faults(self.where):
            self._check_sizes()
            with archive.open(info) as stream:
                self.dtype, self.fortran, self.shape = _header(stream)
                self.start = stream.tell()
            nbytes = count(self.shape) * self.dtype.itemsize
            if not self.dtype.hasobject and info.file_size != self.start + nbytes:
                raise ValueError(f"has {info.file_size - self.start} bytes, expected {nbytes}")
            if problem := shape_problem(self.shape):
                raise ValueError(problem)

    @property
    def is_blob(self) -> bool:
        """Whether its values are of a type that blobs have."""
        return self.dtype.kind == "f" and self.dtype.itemsize in (2, 4, 8)

    def load(self) -> np.ndarray:
        """The values, in host byte order."""
        file: Any = self.archive.fp
        file.check()
        values: np.ndarray = BUDGET.load(count(self.shape) * self.dtype.itemsize, self.where, self._load)
        file.check()
        return values

    def _load(self) -> np.ndarray:
        values = np.empty(count(self.shape), self.dtype)
        target = values.view(np.uint8).data
        with _faults(self.where), self.archive.open(self.info) as stream:
            stream.seek(self.start)
            for at in range(0, len(target), _STEP):
                piece = stream.read(len(target[at : at + _STEP]))
                if not piece:
                    raise EOFError
                target[at : at + len(piece)] = piece
            stream.read(1)  # at the end the checksum is compared
        shaped = values.reshape(self.shape, order="F" if self.fortran else "C")
        return np.ascontiguousarray(shaped, self.dtype.newbyteorder("="))

    def texts(self) -> dict[str, Any]:
        """The array as JSON."""
        if self.dtype != np.uint8:
            raise FormatError(f"has type {self.dtype}", expected="uint8", where=self.where)
        with _faults(self.where):
            data = self.load().tobytes()
            if problem := check_json(data, len(data)):
                raise ValueError(problem)
            texts = parse_json(data)
        if not isinstance(texts, dict):
            raise FormatError("is not a JSON object", where=self.where)
        return texts

    def _check_sizes(self) -> None:
        """No memory is set aside for more values than the file can hold."""
        packed = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE}.get(self.info.compress_type)
        if packed is None:
            raise ValueError("is compressed, but not by deflate")
        size = len(self.archive.fp)  # type: ignore[arg-type]  # a _Map
        if self.info.compress_size > size or self.info.file_size > self.info.compress_size * packed:
            raise ValueError(f"claims {self.info.file_size} bytes, more than the file can hold")


def _header(stream: IO[bytes]) -> tuple[np.dtype[Any], bool, Shape]:
    """Type, order and shape from the header of a ``.npy`` file."""
    version = npy.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"is in version {version[0]}.{version[1]} of NumPy's format, expected 1.0 or 2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that Python 2 wrote
        try:
            shape, fortran, dtype = _READ_HEADER[version](stream, max_header_size=_LONGEST_HEADER)
        except _MALFORMED as error:
            raise ValueError(f"is no plain array: {str(error) or 'its header cannot be parsed'}") from None
    if dtype.fields or dtype.subdtype or min(shape, default=0) < 0:
        raise ValueError(f"is no plain array: it has type {dtype} and shape {shape}")
    return dtype, fortran, shape
