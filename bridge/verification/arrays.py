"""Inputs that the user names: extents, arrays in files, images."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import tokenize
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from bridge.errors import BridgeError, FormatError, MissingExtraError, UsageError
from bridge.limits.budget import BUDGET, shape_problem
from bridge.limits.sources import image_faults, open_file
from bridge.schema import Shape, count

_MAGICS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
"""How arrays, archives and empty archives begin."""
_FAULTS = (
    ValueError, EOFError, RuntimeError, KeyError, IndexError, AttributeError, TypeError, SyntaxError, OverflowError,
    OSError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and :mod:`zipfile` raise for a file that is damaged, encrypted, or packed in an unusual way."""
_LONGEST_HEADER = 1 << 16
_EXTENT = re.compile(r"-?[0-9]{1,19}")


def read_input(text: str) -> tuple[str, Shape | Path]:
    """``data=1,3,224,224`` or ``data=cat.png``: a blob, and its extents or a file.

    Raises:
        UsageError: It is neither.
    """
    name, _, value = text.rpartition("=")
    if not name or not value:
        raise UsageError(f"--input {text}", expected="NAME=1,3,224,224 or NAME=FILE")
    parts = [part.strip(" ") for part in value.split(",")]
    if all(map(_EXTENT.fullmatch, parts)):
        return name, tuple(map(int, parts))
    return name, Path(value)


def read_inputs(texts: Iterable[str]) -> dict[str, Shape | Path]:
    """Several inputs as of :func:`read_input`, by name.

    Raises:
        UsageError: One is given twice.
    """
    found: dict[str, Shape | Path] = {}
    for name, value in map(read_input, texts):
        if name in found:
            raise UsageError(f"--input {name}: is given twice")
        found[name] = value
    return found


def read_array(path: Path, name: str, shape: Shape | None) -> np.ndarray:
    """The values of an input from a file.

    Args:
        path: A ``.npy``, a ``.npz`` with the key ``in:NAME`` or ``NAME``, or an image.
        name: The input.
        shape: Its extents, which an image is scaled to.

    Returns:
        float32. An image is (N, C, H, W) as Caffe's tools load it, before any mean is taken
        off: blue, green, red, 0 to 255, the same for every N.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It holds no such array, or is no image.
        MissingExtraError: It is an image, and Pillow is not installed.
    """
    if path.suffix not in (".npy", ".npz"):
        return _image(path, shape)
    with opened(path) as loaded:
        if isinstance(loaded, np.ndarray):
            return float32(loaded, str(path))
        key = next((key for key in (f"in:{name}", name) if key in loaded), None)
        if key is None:
            raise FormatError(f"has no array '{name}' (arrays: {', '.join(loaded)})", where=str(path))
        return float32(loaded[key], f"{path}: array '{key}'")


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A NumPy file while it is open: an array, or an archive as a mapping from which each is read when it is looked up.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is neither, or damaged, or holds Python objects.
    """
    with open_file(path) as file, _faults(str(path)):
        magic = file.read(6)
        if not magic.startswith(_MAGICS):
            raise FormatError("is no NumPy file", expected=".npz or .npy", where=str(path))
        file.seek(0)
        yield _Archive(file, str(path)) if magic.startswith(b"PK") else _array(file, _size(file), str(path))


def held(path: str | Path) -> Any:
    """As :func:`opened`, but an archive stays open as long as somebody has it."""
    stack = contextlib.ExitStack()
    found = stack.enter_context(opened(path))
    if isinstance(found, np.ndarray):
        stack.close()
    else:
        weakref.finalize(found, stack.close)
    return found


@contextlib.contextmanager
def _faults(where: str) -> Iterator[None]:
    try:
        yield
    except BridgeError:
        raise
    except _FAULTS as error:
        raise FormatError(f"is a damaged NumPy file: {str(error) or 'it ends too early'}", where=where) from None


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


class _Archive(Mapping[str, np.ndarray]):
    """The arrays of a ``.npz`` by name."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._zip, self._where = zipfile.ZipFile(file), where
        self._infos = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}
        BUDGET.expand(_size(file), sum(info.file_size for info in self._zip.infolist()), where)

    def __getitem__(self, key: str) -> np.ndarray:
        info = self._infos[key]
        where = f"{self._where}: array '{key}'"
        with _faults(where), self._zip.open(info) as stream:
            return _array(stream, info.file_size, where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


def _array(stream: IO[bytes], size: int, where: str) -> np.ndarray:
    """An array in NumPy's format; nothing is set aside for more values than ``size`` bytes hold."""
    version = npy.read_magic(stream)
    length = stream.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > _LONGEST_HEADER:
        raise ValueError(f"its header is longer than {_LONGEST_HEADER} bytes")
    head = io.BytesIO(length + stream.read(int.from_bytes(length, "little")))
    try:
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(head)
    except MemoryError:  # what Python's parser says of brackets that are nested too deeply
        raise ValueError("its header is nested too deeply") from None
    if dtype.hasobject:
        raise FormatError("holds Python objects", expected="numbers", where=where)
    nbytes = count(shape) * dtype.itemsize
    if size - stream.tell() < nbytes:
        raise ValueError(f"has {size - stream.tell()} bytes, expected {nbytes}")
    if problem := shape_problem(shape):
        raise ValueError(problem)
    array: np.ndarray = BUDGET.load(nbytes, where, lambda: np.frombuffer(_read(stream, nbytes), dtype, count(shape)))
    return array.reshape(shape, order="F" if fortran else "C")


def _read(stream: IO[bytes], nbytes: int) -> bytes:
    data = stream.read(nbytes)
    if len(data) != nbytes:
        raise EOFError
    return data


def float32(array: Any, where: str) -> np.ndarray:
    """What was read from a NumPy file, as float32.

    Raises:
        FormatError: It is no array of real numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        found = getattr(array, "dtype", "no array")
        raise FormatError(f"has type {found}", expected="numbers", where=where)
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def _image(path: Path, shape: Shape | None) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow, which reads images, is not installed", hint="pip install pillow") from None
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        raise UsageError(f"an image does not fit an input of extents {shape}", where=str(path))
    batch, channels, height, width = shape
    with open_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an image that Pillow warns of is within the budget, or is not read
        try:
            with Image.open(file) as image:
                BUDGET.picture(_size(file), image.width, image.height, str(path))
                mode = "RGB" if channels == 3 else "L"
                scaled = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
        except BridgeError:
            raise
        except image_faults(Image.DecompressionBombError) as error:
            problem = str(error).replace(repr(file), "it").replace("\n", " ") or type(error).__name__
            raise FormatError(f"is no image: {problem}", where=str(path)) from None
    pixels = np.asarray(scaled, np.float32).reshape(height, width, channels)[..., ::-1]
    return np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)
