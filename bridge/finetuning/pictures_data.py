"""Data from pictures: a folder per class, or a list of files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import FormatError, MissingExtraError, UsageError
from bridge.files.atomic import atomic
from bridge.finetuning.cache import digest
from bridge.finetuning.config import MAPPED
from bridge.finetuning.data import Data, Loading
from bridge.finetuning.images import decode_all, suffixes
from bridge.finetuning.stored import map_rows, write_rows
from bridge.schema import count

_LINE = re.compile(r"(.*\S)[ \t]+([0-9]{1,9})", re.ASCII)
_NAMED = 5
"""Most unreadable pictures that an error names."""


def from_folder(root: Path, loading: Loading, classes: Sequence[str]) -> Data:
    """Data from a folder with a folder per class; folders and files whose names begin with a dot are left out.

    Raises:
        FormatError: It has no folders, or one whose name is not among ``classes``.
    """
    _need_pillow()
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
    _need_pillow()
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


def _need_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("reading pictures needs Pillow", hint="pip install 'weight-bridge[plot]'")


@dataclass
class _Decoding:
    """Decodes pictures into an array, in memory or, where they do not fit, in a file."""

    source: Path
    paths: Sequence[Path]
    labels: Sequence[int]
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
        y = np.array([self.labels[index] for index in self.kept], np.int64)
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
            if isinstance(made, str):
                self.bad.append(f"{self.paths[index]}: {made}")
            elif len(self.bad) <= self.loading.max_bad:
                self.kept.append(index)
                yield made
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
