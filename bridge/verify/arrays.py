"""Inputs that the user names: extents, arrays in files, images."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import FormatError, MissingExtraError, MissingFileError, UsageError
from bridge.schema import Shape

_SHAPE = re.compile(r"\d+(,\d+)*")


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
    try:
        if path.suffix in (".npy", ".npz"):
            return np.asarray(_numpy(path, name), np.float32)
        return _image(path, shape)
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _numpy(path: Path, name: str) -> Any:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            key = next((key for key in (f"in:{name}", name) if key in loaded), None)
            if key is None:
                raise FormatError(f"has no array '{name}' (arrays: {', '.join(loaded)})", where=str(path))
            return loaded[key]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"is no NumPy file: {error}", where=str(path)) from None


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
    pixels = np.asarray(scaled, np.float32).reshape(height, width, channels)[..., ::-1]
    return np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)
