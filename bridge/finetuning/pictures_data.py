"""Data from pictures: a folder per class, or a list of files."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import FormatError, UsageError
from bridge.files.atomic import atomic
from bridge.finetuning.cache import digest
from bridge.finetuning.config import MAPPED
from bridge.finetuning.data import Data, Loading, labels_of
from bridge.finetuning.images import decode_all, need_pillow, suffixes
from bridge.finetuning.stored import map_rows, write_rows
from bridge.schema import count

_LINE = re.compile(r"(.*\S)[ \t]+([0-9]{1,9})", re.ASCII)
_TOLD = 16
"""Pictures between two signs of life."""
_NAMED = 5
"""Most unreadable pictures that an error names."""


def from_folder(root: Path, loading: Loading, classes: Sequence[str]) -> Data:
    """Data from a folder with a folder per class; folders and files whose names begin with a dot are left out.

    Raises:
        FormatError: It has no folders, or one whose name is not among ``classes``.
    """
    need_pillow()
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise FormatError("has no folders", expected="one per class", where=str(root))
    names = tuple(classes) or tuple(folder.name for folder in folders)
    unknown = [folder.name for folder in folders if folder.name not in names]
    if unknown:
        raise FormatError(f"class '{unknown[0]}' is not among those of the training data", where=str(root))
    known = suffixes()
    paths: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for label, name in enumerate(names):
        found = (root / name).rglob("*")
        files = sorted(path for path in found if _is_file(path) and not path.name.startswith("."))
        chosen = [path for path in files if path.suffix.lower() in known]
        others += [path for path in files if path.suffix.lower() not in known]
        paths += chosen
        labels += [label] * len(chosen)
    notes = _about(others, [name for label, name in enumerate(names) if label not in set(labels)])
    return _Decoding(root, paths, labels, names, loading).run(notes)


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a broken link, which counts as a picture that cannot be read."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _about(others: Sequence[Path], empty: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if others:
        kinds = ", ".join(f"{n} {kind or 'without an ending'}" for kind, n in Counter(p.suffix for p in others).items())
        notes.append(f"left out {len(others)} files that are no pictures by their endings ({kinds}), first {others[0]}")
    if empty:
        notes.append(f"classes without pictures: {', '.join(empty)}")
    return tuple(notes)


def from_list(path: Path, loading: Loading) -> Data:
    """Data from Caffe's list of images: ``path label`` on each line, with a space or a tab between.

    Raises:
        FormatError: A line has another form.

    Source: image_data_layer.cpp; the label comes after the last space.
    """
    need_pillow()
    folder = Path(loading.root) if loading.root else path.parent
    paths, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        picture = folder / match[1] if match else None
        if match is None or picture is None or (_LINE.fullmatch(match[1]) and not picture.exists()):
            raise FormatError(
                f"expected 'path label' with one label, a number from 0 on; found {line[:60]!r}",
                where=f"{path}:{number}",
            )
        paths.append(picture)
        labels.append(int(match[2]))
    return _Decoding(path, paths, labels, (), loading).run(())


def from_table(path: Path, loading: Loading, classes: Sequence[str]) -> Data:
    """Data from a .csv with a header: a column of files, and one of classes or numbers, or several of numbers.

    ``file,class`` with names makes classes, in the order of their names; ``file,x1,y1,x2,y2`` makes four targets for
    each image, and the names of the columns are those of the targets.

    Args:
        path: The table.
        loading: How pictures become arrays.
        classes: The names of the classes where they are known already.

    Raises:
        FormatError: A row has another number of cells, or a cell is no number.
    """
    need_pillow()
    header, rows = _table(path)
    folder = Path(loading.root) if loading.root else path.parent
    cells = [row[1:] for _, row in rows]
    paths = [folder / row[0] for _, row in rows]
    names: tuple[str, ...] = tuple(header[1:]) if len(header) > 2 else ()
    if len(header) > 2 or all(_number(row[0]) for row in cells):
        for (line, _), row in zip(rows, cells, strict=True):
            if odd := [cell for cell in row if not _number(cell)]:
                raise FormatError(f"'{odd[0]}' is no number", where=f"{path}:{line}")
        labels = np.array([[float(cell) for cell in row] for row in cells], np.float64)
    else:
        names = tuple(classes) or tuple(sorted({row[0] for row in cells}))
        if unknown := [row[0] for row in cells if row[0] not in names]:
            raise FormatError(f"class '{unknown[0]}' is not among those of the training data", where=str(path))
        labels = np.array([[names.index(row[0])] for row in cells], np.float64)
    return _Decoding(path, paths, labels if len(header) > 2 else labels[:, 0], names, loading).run(())


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row with the number of its line."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        every = [(reader.line_num, row) for row in reader if row]
    if len(every) < 2 or len(every[0][1]) < 2:
        raise FormatError("has no rows", expected="a header such as file,class, and a row per picture", where=str(path))
    header = every[0][1]
    for number, row in every[1:]:
        if len(row) != len(header):
            raise FormatError(f"has {len(row)} cells", expected=f"{len(header)}", where=f"{path}:{number}")
    return header, every[1:]


def _number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


@dataclass
class _Decoding:
    """Decodes pictures into an array, in memory or, where they do not fit, in a file."""

    source: Path
    paths: Sequence[Path]
    labels: Any
    classes: tuple[str, ...]
    loading: Loading
    kept: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.row = (self.loading.shape[0], *self.loading.resize)

    def run(self, notes: tuple[str, ...]) -> Data:
        """Decode all of them.

        Raises:
            FormatError: There are no pictures, or too many are unreadable.
            UsageError: Pictures do not suit the net's input, or a worker was killed.
        """
        if not self.paths:
            raise FormatError("has no pictures", where=str(self.source))
        if self.row[0] not in (1, 3):
            raise UsageError(
                f"the net's input has {self.row[0]} channels, pictures have 1 or 3", where=str(self.source)
            )
        fits = count(self.row) * len(self.paths) <= self.loading.memory
        try:
            x, content = self._in_memory() if fits else self._in_file()
        except BrokenProcessPool:
            raise UsageError(
                "a process that decodes pictures ended too early",
                where=str(self.source),
                hint="take fewer --workers; 0 decodes in this process",
            ) from None
        if not fits:
            notes = (*notes, f"decoded pictures are in {self.loading.folder}, {x.nbytes / 1e9:.1f} GB")
        notes = (*notes, *(f"skipped unreadable picture {line}" for line in self.bad))
        y = labels_of(np.array([self.labels[index] for index in self.kept]))
        names = tuple(str(self.paths[index]) for index in self.kept)
        return Data(x, y, self.classes, names, notes=notes, content=content)

    def _in_memory(self) -> tuple[np.ndarray, str]:
        x = np.empty((len(self.paths), *self.row), np.uint8)
        for place, pixels in enumerate(self._decoded()):
            x[place] = pixels
        x = x[: len(self.kept)]
        return x, digest(x)

    def _in_file(self) -> tuple[np.ndarray, str]:
        """The rows as a memory map, and their digest; a resumed run uses the file that it wrote before."""
        key = digest([(str(path), *_stamp(path)) for path in self.paths], self.row)[:16]
        rows, index = (self.loading.folder / f"{MAPPED}{key}.{end}" for end in ("rows", "json"))
        if not (rows.exists() and index.exists()):
            self.loading.folder.mkdir(parents=True, exist_ok=True)
            made = hashlib.sha256()
            write_rows({"x": rows}, ({"x": _noted(pixels, made)} for pixels in self._decoded()))
            state = {"kept": self.kept, "bad": self.bad, "content": made.hexdigest()}
            with atomic(index) as file:
                file.write(json.dumps(state).encode())
        state = json.loads(index.read_text(encoding="utf-8"))
        self.kept, self.bad = state["kept"], state["bad"]
        return map_rows(rows, np.uint8, self.row), state["content"]

    def _decoded(self) -> Iterator[np.ndarray]:
        """Yield the readable pictures; when all are decoded, too many unreadable ones are an error that names them."""
        found = decode_all(self.paths, self.loading.resize, self.row[0], self.loading.workers)
        for index, made in enumerate(found):
            if index % _TOLD == 0:
                self.loading.work("decoding pictures", index, len(self.paths))
            if isinstance(made, str):
                self.bad.append(f"{self.paths[index]}: {made}")
            elif len(self.bad) <= self.loading.max_bad:
                self.kept.append(index)
                yield made
        self.loading.work("decoding pictures", len(self.paths), len(self.paths))
        number = len(self.bad)
        if number > self.loading.max_bad:
            more = [f"and {number - _NAMED} more"] if number > _NAMED else []
            raise FormatError(
                f"{number} unreadable picture{'s' if number > 1 else ''}: {'; '.join([*self.bad[:_NAMED], *more])}",
                where=str(self.source),
                hint=f"--max-bad {number} skips {'them' if number > 1 else 'it'}",
            )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_size, found.st_mtime_ns


def _noted(pixels: np.ndarray, made: Any) -> np.ndarray:
    made.update(np.ascontiguousarray(pixels).data)
    return pixels[None]
