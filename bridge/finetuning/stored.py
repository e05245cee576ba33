"""Arrays in files: written row by row, read through a memory map.

A process that writes through a memory map is killed by the system when the disk is full. So files
are written as streams: they appear whole or not at all, and a full disk is an ordinary error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bridge.errors import FormatError
from bridge.files.atomic import atomic
from bridge.schema import Shape, count


def write_rows(paths: Mapping[str, Path], batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write batches of rows; each key has a file of its own.

    Raises:
        OutputError: A file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(batches, Generator):  # closed now, and not when garbage is collected, in no order
            stack.enter_context(contextlib.closing(batches))
        files = {key: stack.enter_context(atomic(path)) for key, path in paths.items()}
        for batch in batches:
            for key, rows in batch.items():
                files[key].write(np.ascontiguousarray(rows).data)


def map_rows(path: Path, dtype: type, row: Sequence[int]) -> np.ndarray:
    """The rows of a file, (N, ...), read-only.

    Raises:
        FormatError: The size of the file is not a multiple of a row's.
    """
    each = count(tuple(row)) * np.dtype(dtype).itemsize
    size = path.stat().st_size
    if size % each:
        raise FormatError(f"{size} bytes are not rows of {each}", where=str(path), hint="delete the file")
    if not size:
        return np.empty((0, *row), dtype)
    shape: Shape = (size // each, *row)
    return np.memmap(path, dtype, "r", shape=shape)
