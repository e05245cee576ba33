"""Files that are read: opened without waiting, remembered, and noticed when they change."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from bridge.errors import ChangedError, FormatError, MissingFileError, nearest

_IMAGE_FAULTS: tuple[type[Exception], ...] = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip


def image_faults(*own: type[Exception]) -> tuple[type[Exception], ...]:
    """What Pillow raises for damaged images, whatever their format.

    Args:
        own: Errors of Pillow's own, which this module does not import.
    """
    return (*_IMAGE_FAULTS, *own)


class Stamp(NamedTuple):
    """What a file was when it was opened."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp from the system's answer."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def file(self) -> tuple[int, int]:
        """Which file it is, under whatever name."""
        return self.device, self.inode


class Opened:
    """The files that were opened since the start of a command.

    Attributes:
        stamps: Device and inode -> path and stamp of each; of a file that is opened twice the first stamp counts.
        last: Path -> stamp at its last opening.
        guarded: Whether nothing may be written over them.
        written: Bytes that the command has written.
    """

    def __init__(self) -> None:
        self.stamps: dict[tuple[int, int], tuple[str, Stamp]] = {}
        self.last: dict[str, Stamp] = {}
        self.guarded = False
        self.written = 0

    def clear(self) -> None:
        """Forget them."""
        self.stamps.clear()
        self.last.clear()
        self.written = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(stamp.size for _, stamp in self.stamps.values())

    def add(self, path: str, found: Stamp) -> None:
        """Remember one."""
        self.stamps.setdefault(found.file, (path, found))
        self.last[path] = found


OPENED = Opened()
"""Those of this process; a command begins with none."""


def _neighbours(path: Path) -> str:
    """A hint with the files beside a missing one whose names are most like its."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    except OSError:
        return ""
    return nearest(path.name, names, 0.8)


def open_file(path: str | Path, *, remember: bool = True) -> IO[bytes]:
    """Open a regular file for reading.

    A pipe or a device is refused, before opening it could wait for a writer.

    Args:
        path: The file.
        remember: Keep it in :data:`OPENED`; not for pictures, of which there may be millions.

    Raises:
        MissingFileError: It does not exist, cannot be opened, or is no regular file.
    """
    where = str(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if os.path.isdir(path):  # on Windows that is no IsADirectoryError
            raise MissingFileError("is a folder", expected="a file", where=where) from None
        hint = _neighbours(Path(path)) if isinstance(error, FileNotFoundError) else ""
        raise MissingFileError(f"cannot be read: {error.strerror}", where=where, hint=hint) from None
    except ValueError as error:  # a NUL in the name
        raise MissingFileError(f"cannot be read: {error}", where=where) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        what = "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
        raise MissingFileError(what, expected="a file" if stat.S_ISDIR(status.st_mode) else "", where=where)
    if remember:
        OPENED.add(where, Stamp.of(status))
    return os.fdopen(descriptor, "rb")


def read_file(path: str | Path, *, remember: bool = True) -> bytes:
    """The whole content of a regular file.

    Args:
        path: The file.
        remember: See :func:`open_file`.

    Raises:
        MissingFileError: See :func:`open_file`.
    """
    with open_file(path, remember=remember) as file:
        try:
            return file.read()
        except OSError as error:
            raise MissingFileError(f"cannot be read: {error.strerror}", where=str(path)) from None


def stamp_of(file: IO[bytes]) -> Stamp:
    """The stamp of an open file."""
    return Stamp.of(os.fstat(file.fileno()))


def check_unchanged(path: str | Path, stamp: Stamp, *, same: bool = False) -> None:
    """Demand that a file still is what it was.

    A file that was replaced by another one lives on for whoever has it open. That is an
    error only where the file is needed by its name (``same``).

    Raises:
        ChangedError: It was written to, cut short or, with ``same``, replaced or removed.
    """
    try:
        now = Stamp.of(os.stat(path))
    except OSError as error:
        if same:
            raise ChangedError(f"cannot be read any more: {error.strerror}", where=str(path), hint=_AGAIN) from None
        return
    if now == stamp or (now.file != stamp.file and not same):
        return
    if now.file != stamp.file:
        found = "was replaced by another file since it was read"
    elif now.size != stamp.size:
        found = f"has {now.size} bytes, and had {stamp.size} when it was opened"
    else:
        found = "was written to since it was opened"
    raise ChangedError(found, where=str(path), hint=_AGAIN)


_AGAIN = "run the command again when nothing writes to the file"


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a file that a model refers to, which has to lie in the model's own folder or below.

    Args:
        folder: The model's folder, resolved.
        name: The file's name, as the model has it.
        where: What the message is about.

    Raises:
        FormatError: It lies elsewhere, or no file can have that name.
    """
    path = None
    if name and "\0" not in name:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long
            path = (folder / name).resolve()
    if path is None or not path.is_relative_to(folder):
        raise FormatError(f"its external data, {name!r}, lie outside the model's folder", where=where)
    return path
