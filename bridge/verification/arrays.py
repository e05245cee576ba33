"""Inputs that the user names: extents, arrays in files, images."""

from __future__ import annotations

import contextlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import BridgeError, FormatError, MissingExtraError, MissingFileError, UsageError
from bridge.schema import Shape

_MAGICS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
"""How arrays, archives and empty archives begin."""
_FAULTS = (ValueError, EOFError, RuntimeError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What NumPy and :mod:`zipfile` raise for a file that is damaged, encrypted, or packed in an odd way."""
_SHAPE = re.compile(r" *-?\d{1,19} *(, *-?\d{1,19} *)*")


def read_input(text: str) -> tuple[str, Shape | Path]:
    """``data=1,3,224,224`` or ``data=cat.png``: a blob, and its extents or a file.

    Raises:
        UsageError: It is neither.
    """
    name, _, value = text.rpartition("=")
    if not name or not value:
        raise UsageError(f"--input {text}: expected NAME=1,3,224,224 or NAME=FILE")
    if _SHAPE.fullmatch(value):
        return name, tuple(map(int, value.split(",")))
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
    """What :func:`numpy.load` makes of a file, while it is open: an array, or an archive to read arrays from.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is neither, or damaged, or holds Python objects.
    """
    where = str(path)
    try:
        with open(path, "rb") as file:
            if not file.read(6).startswith(_MAGICS):
                raise FormatError("is no NumPy file, expected .npz or .npy", where=where)
            file.seek(0)
            yield np.load(file, allow_pickle=False)
    except BridgeError:
        raise
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror or error}", where=where) from None
    except _FAULTS as error:
        objects = "allow_pickle" in str(error)
        problem = "holds Python objects, expected numbers" if objects else f"is a damaged NumPy file: {error}"
        raise FormatError(problem, where=where) from None


def float32(array: Any, where: str) -> np.ndarray:
    """What was read from a NumPy file, as float32.

    Raises:
        FormatError: It is no array of real numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        found = getattr(array, "dtype", "no array")
        raise FormatError(f"has type {found}, expected numbers", where=where)
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def _image(path: Path, shape: Shape | None) -> np.ndarray:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("Pillow, which reads images, is not installed", hint="pip install pillow") from None
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        raise UsageError(f"an image does not fit an input of extents {shape}", where=str(path))
    batch, channels, height, width = shape
    try:
        with Image.open(path) as image:
            scaled = image.convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FormatError(f"is no image: {error}", where=str(path)) from None
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    pixels = np.asarray(scaled, np.float32).reshape(height, width, channels)[..., ::-1]
    return np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)
