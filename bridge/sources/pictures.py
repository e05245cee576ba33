"""Picture files as arrays, with the pixels that OpenCV gives Caffe."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import BridgeError, FormatError, MissingExtraError
from bridge.extras import pip
from bridge.limits.budget import BUDGET
from bridge.limits.sources import image_faults, read_file


def read_picture(path: Path, channels: int | None) -> np.ndarray:
    """A picture file.

    Args:
        path: The file.
        channels: 3 for blue, green and red, 1 for grey, ``None`` for what the file has.

    Returns:
        uint8 (channels, height, width).

    Raises:
        MissingFileError: The file cannot be read.
        FormatError: It is no picture.
        MissingExtraError: Pillow is not installed.

    Source: io.cpp ``ReadImageToCVMat``.
    """
    return picture_of_bytes(read_file(path, remember=False), channels, str(path))


def picture_of_bytes(data: bytes, channels: int | None, where: str) -> np.ndarray:
    """The picture in the bytes of a file; see :func:`read_picture`. Source: io.cpp ``DecodeDatumToCVMat``."""
    image_module = _pillow()
    try:
        with image_module.open(io.BytesIO(data)) as picture:
            BUDGET.picture(len(data), picture.width, picture.height, where)
            if channels == 1 and picture.format == "JPEG":
                picture.draft("L", picture.size)
            pixels = _pixels(picture, channels)
    except BridgeError:
        raise
    except image_faults(image_module.DecompressionBombError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"is no picture: {text}", where=where) from None
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow is not installed", hint=pip("data")) from None
    return Image


def _pixels(picture: Any, channels: int | None) -> np.ndarray:
    """uint8 (height, width, channels), blue first."""
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.uint32)
        grey = (deep >> 8).clip(0, 255).astype(np.uint8)[:, :, None]
        return np.repeat(grey, 3, axis=2) if channels == 3 else grey
    own = {"L": "L", "1": "L", "LA": "RGBA", "RGBA": "RGBA", "PA": "RGBA"}.get(picture.mode, "RGB")
    pixels = np.asarray(picture.convert(own if channels is None else "L" if own == "L" else "RGB"), np.uint8)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2) if channels == 3 else pixels[:, :, None]
    if channels == 1:
        return _grey(pixels.astype(np.uint32), png=picture.format == "PNG")[:, :, None]
    return pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]


def _grey(pixels: np.ndarray, png: bool) -> np.ndarray:
    """Grey from colours: for PNG libpng does it, which cuts off, for other files OpenCV, which rounds."""
    red, green, blue = pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2]
    if png:
        mixed = (red * 9797 + green * 19234 + blue * 3737) >> 15
    else:
        mixed = (red * 4899 + green * 9617 + blue * 1868 + 8192) >> 14
    return np.asarray(mixed, np.uint8)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in another size, as ``cv::resize`` with bilinear interpolation gives it.

    Args:
        image: uint8 (C, H, W).
        height: New height.
        width: New width.

    Returns:
        uint8 (C, height, width).

    Source: OpenCV resize.cpp: coefficients of 11 bits; halving both sides is the mean of four pixels.
    """
    _, rows, columns = image.shape
    if (rows, columns) == (height, width):
        return image
    BUDGET.check(16 * len(image) * (height * width + rows * width), f"a picture of {height} x {width}")
    wide = image.astype(np.int32)
    if (rows, columns) == (2 * height, 2 * width):
        total = wide[:, ::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, ::2] + wide[:, 1::2, 1::2]
        return ((total + 2) >> 2).astype(np.uint8)
    left, right, a0, a1 = _taps(columns, width)
    upper, lower, b0, b1 = _taps(rows, height)
    mixed = wide[:, :, left] * a0 + wide[:, :, right] * a1
    above, below = mixed[:, upper] >> 4, mixed[:, lower] >> 4
    made = ((b0[:, None] * above) >> 16) + ((b1[:, None] * below) >> 16)
    return np.asarray((made + 2) >> 2, np.uint8)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each new place the two old ones, and their weights in units of 1/2048."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    part = place - first.astype(np.float32)
    part[(first < 0) | (first >= old - 1)] = 0
    first = first.clip(0, old - 1)
    weights = (np.rint((np.float32(1) - part) * 2048), np.rint(part * 2048))
    return first, np.minimum(first + 1, old - 1), weights[0].astype(np.int32), weights[1].astype(np.int32)
