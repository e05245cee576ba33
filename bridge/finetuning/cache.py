"""Features of the frozen trunk, computed once and kept in memory or in files."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import FormatError
from bridge.files.atomic import atomic
from bridge.finetuning.stored import map_rows, write_rows
from bridge.schema import Shape

Features = dict[str, Any]
"""Blob name -> (N, ...) float32."""


class Cache:
    """Features of every image, in memory or, where they do not fit, in files.

    Args:
        folder: Folder of the files; a later run with the same key reuses them.
        key: Digest of everything that the features depend on.
        rows: Number of images, times augmented versions of each.
        memory: Bytes of features that are kept in memory; more go to files.
        keep: Whether features go to files even if they fit into memory.

    Attributes:
        place: ``memory``, or the folder.
        reused: Whether the features come from an earlier run.
    """

    def __init__(self, folder: Path, key: str, rows: int, memory: int, *, keep: bool = False) -> None:
        self._folder, self._rows, self._memory, self._keep = folder, rows, memory, keep
        self._index = folder / f"{key}.json"
        self._arrays: dict[str, np.ndarray] = {}
        self.place = "memory"
        self.reused = False

    def load(self) -> bool:
        """Use the features of an earlier run; returns whether its files are there and whole."""
        if not self._index.exists():
            return False
        try:
            shapes = {blob: tuple(shape) for blob, shape in json.loads(self._index.read_text(encoding="utf-8")).items()}
            self._arrays = {
                blob: map_rows(path, np.float32, shapes[blob]) for blob, path in self._paths(shapes).items()
            }
        except (OSError, ValueError, AttributeError, TypeError, FormatError):
            return False  # damaged files are computed again
        if any(len(array) != self._rows for array in self._arrays.values()):
            return False
        self.place, self.reused = str(self._folder), True
        return True

    def fill(
        self,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        writes: bool = True,
        wait: Callable[[], object] = lambda: None,
    ) -> None:
        """Store the features of all rows, given in order.

        Args:
            batches: The features.
            writes: Whether this process writes the files; another process on this machine may.
            wait: Called before the files are read, to wait for the process that writes them.

        Raises:
            OutputError: The files cannot be written, for example because the disk is full.
        """
        parts = iter(batches)
        first = next(parts)
        per_row = sum(values[0].nbytes for values in first.values())
        if not self._keep and per_row * self._rows <= self._memory:
            self._fill_memory(first, parts)
            return
        shapes: dict[str, Shape] = {blob: values.shape[1:] for blob, values in first.items()}
        if writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_rows(self._paths(shapes), _chained(first, parts))
            with atomic(self._index) as file:  # last: where the index is, all files are whole
                file.write(json.dumps({blob: list(shape) for blob, shape in shapes.items()}).encode())
        else:
            collections.deque(parts, 0)
        wait()
        self.reused = False
        self.place = str(self._folder)
        self._arrays = {blob: map_rows(path, np.float32, shapes[blob]) for blob, path in self._paths(shapes).items()}

    def _fill_memory(self, first: Mapping[str, np.ndarray], parts: Iterator[Mapping[str, np.ndarray]]) -> None:
        self._arrays = {blob: np.empty((self._rows, *values.shape[1:]), np.float32) for blob, values in first.items()}
        self.place, self.reused = "memory", False
        start = 0
        for part in _chained(first, parts):
            for blob, values in part.items():
                self._arrays[blob][start : start + len(values)] = values
            start += len(next(iter(part.values())))

    def _paths(self, blobs: Iterable[str]) -> dict[str, Path]:
        return {blob: self._index.with_suffix(f".{number}.rows") for number, blob in enumerate(blobs)}

    def rows(self, indices: np.ndarray) -> Features:
        """The features at these rows."""
        return {blob: values[indices] for blob, values in self._arrays.items()}


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def digest(*parts: Any) -> str:
    """SHA-256 of arrays and of other objects by their ``repr``."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            made.update(repr((part.shape, str(part.dtype))).encode())
            made.update(np.ascontiguousarray(part).data)
        else:
            made.update(repr(part).encode())
    return made.hexdigest()
