"""Arrays as views into a memory map, for the formats that store them whole."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from backends.wire import FileBytes
from bridge.limits.budget import shape_problem
from bridge.schema import Blob, Location, Shape, count


def mapped_blob(source: FileBytes, offset: int, shape: Shape, dtype: Any, what: str) -> Blob:
    """A blob whose values lie unbroken in a file, in C order.

    Args:
        source: The file.
        offset: Byte of the first value.
        shape: Extent of each axis.
        dtype: Type of the values as stored, with its byte order.
        what: What messages call the array.

    Raises:
        FormatError: The values would not lie inside the file, or no array has that shape.
    """
    if problem := shape_problem(shape):
        raise source.error(offset, f"{what}: {problem}")
    stored = np.dtype(dtype)
    native = stored.newbyteorder("=")
    nbytes = count(shape) * stored.itemsize
    if offset < 0 or offset + nbytes > source.size:
        over = offset + nbytes - source.size
        raise source.error(offset, f"{what}: {nbytes} bytes run {over} bytes past the end of file")

    def load() -> np.ndarray:
        source.check()
        values = np.frombuffer(source.buffer, stored, count(shape), offset) if nbytes else np.zeros(0, native)
        return values if stored.isnative else values.astype(native)

    little = stored.byteorder == "<" or (stored.byteorder == "=" and sys.byteorder == "little")
    location = Location(source.name, offset, nbytes, source.stamp) if little and nbytes else None
    return Blob(shape, native, load, location)
