"""Files that are written whole or not at all, and values that are written in small pieces."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from bridge.errors import BridgeError, BudgetError, OutputError, UsageError
from bridge.limits.budget import BUDGET, megabytes, size
from bridge.limits.sources import OPENED, Stamp, check_unchanged
from bridge.schema import Blob, Net
from bridge.schema.net import distinct

WINDOWS = sys.platform == "win32"
"""A folder has no descriptor there, and an open file cannot be renamed."""

PIECE = 1 << 19
"""Bytes of a blob that are in memory at once while it is written; so few that they stay in the processor's cache."""

_LARGER = 8
"""Weights as float64 take twice their bytes, packed ones a few times; no output takes more."""


@contextlib.contextmanager
def atomic(path: str | Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A stream for the new content of a file, which replaces the file when all is written.

    The content goes to a file beside the target, without a name where the system can do
    that, so that even a killed process leaves nothing. It is synced, then renamed over
    the target. When the block raises, the target stays as it was.

    Args:
        path: The file; its folder must exist.
        durable: Sync it, so that it is whole even after the power failed. What is quickly made again need
            not wait for the disk.

    Raises:
        OutputError: It cannot be written: no such folder, no permission, the disk is full.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        _check_regular(path)
        with contextlib.closing(_Draft(target, durable)) as draft:
            yield draft.stream
            draft.publish()
    except BridgeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from None


def refuse_sources(sources: Iterable[str | Path], targets: Iterable[str | Path]) -> None:
    """Check that no file is written over one that is read, and that no two outputs are one file.

    Files are told apart by device and inode, so that links to one file are that file.

    Raises:
        UsageError: A target is a source, or another target, under whatever name.
    """
    read = {file: source for source in sources if (file := file_of(source)) is not None}
    written: dict[Any, str | Path] = {}
    for target in targets:
        file = file_of(target)
        if file is not None and file in read:
            raise UsageError("would be written over: it is what is read", where=str(read[file]))
        key = file or os.path.realpath(target)
        if key in written:
            raise UsageError(f"is named for two outputs, '{written[key]}' and '{target}'", where=str(target))
        written[key] = target


def file_of(path: str | Path) -> tuple[int, int] | None:
    """Device and inode; ``None`` where there is no such file."""
    try:
        return Stamp.of(os.stat(path)).file
    except (OSError, ValueError):
        return None


def start_command(sources: Iterable[str | Path], targets: Iterable[str | Path]) -> None:
    """Begin a command that writes files; call it before anything is read.

    From here on :func:`atomic` refuses to write over whatever file the process opened to read, such as
    external data or a mean, and when one of these has changed.

    Args:
        sources: What is named to be read.
        targets: What is named to be written.

    Raises:
        UsageError: See :func:`refuse_sources`.
    """
    refuse_sources(sources, targets)
    OPENED.clear()
    OPENED.guarded = True


def end_command() -> None:
    """End it."""
    OPENED.clear()
    OPENED.guarded = False


def _guard(target: Path) -> None:
    """Refuse a target that is a source, and one whose sources have changed, where a command has begun."""
    if not OPENED.guarded:
        return
    file = file_of(target)
    if file in OPENED.stamps:
        raise UsageError("would be written over: it is what is read", where=str(target))
    for path, stamp in OPENED.stamps.values():
        check_unchanged(path, stamp)


def _count_output(nbytes: int) -> None:
    """Demand that a command writes no more than what it read can be worth, or its budget of memory.

    Raises:
        BudgetError: It would.
    """
    if OPENED.guarded:
        OPENED.written += nbytes
        if OPENED.written > BUDGET.limit and OPENED.written > _LARGER * OPENED.nbytes:
            message = f"the output is larger than {size(BUDGET.limit)}, and {_LARGER} times what was read"
            raise BudgetError(message, hint=f"--memory {megabytes(2 * OPENED.written)} allows it")


def check_sources(net: Net, *, by_name: bool = False) -> None:
    """Demand that the files in which a net's values lie have not changed since they were opened.

    Args:
        net: The net.
        by_name: Whether the files themselves matter, and not only the values that are mapped already.

    Raises:
        ChangedError: One has.
    """
    places = {blob.location[::3] for blob in distinct(net.layers) if blob.location is not None}
    for path, stamp in places:
        if stamp is not None:
            check_unchanged(path, stamp, same=by_name)


def _check_regular(path: str | Path) -> None:
    """Demand that a target is a regular file, if it is there: what /dev/stdout leads to has no name of its own."""
    if not os.fspath(path):
        raise UsageError("the name of the output is empty")
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise OutputError("is a folder" if stat.S_ISDIR(mode) else "is not a regular file", where=str(path))


class _Draft:
    """The new content of a file, not yet under its name."""

    def __init__(self, target: Path, durable: bool) -> None:
        _guard(target)
        self.target = target
        self.name = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
        self.named = False
        self.folder = None if WINDOWS else os.open(target.parent, os.O_RDONLY)
        try:
            self.stream: IO[bytes] = os.fdopen(self._open(), "w+b")
        except BaseException:
            self._close_folder()
            raise
        self.syncer = _Syncer(self.stream.fileno()) if durable else None
        if self.syncer:
            self.syncer.start()

    def _open(self) -> int:
        nameless = getattr(os, "O_TMPFILE", None)
        if nameless is not None:
            with contextlib.suppress(OSError):  # not every file system can
                return os.open(self.target.parent, nameless | os.O_RDWR, 0o666)
        self.named = True
        return os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def publish(self) -> None:
        """Make it durable, and then the target."""
        self.stream.flush()
        _guard(self.target)
        if self.syncer:
            self.syncer.finish()
            os.fsync(self.stream.fileno())
        if not self.named:
            # With a folder's descriptor Python calls linkat, which follows /proc's link to the nameless file.
            link = f"/proc/self/fd/{self.stream.fileno()}"
            self.named = True  # set first, because an interrupt may come between
            os.link(link, self.name, src_dir_fd=self.folder, follow_symlinks=True)
        if WINDOWS:
            self.stream.close()
        os.replace(self.name, self.target)
        self.named = False
        if self.syncer and self.folder is not None:
            os.fsync(self.folder)

    def close(self) -> None:
        """Leave nothing behind but the target."""
        try:
            if self.syncer:
                self.syncer.stop()
        finally:
            with contextlib.suppress(OSError):  # the content is discarded
                self.stream.close()
            self._close_folder()
            if self.named:
                self.name.unlink(missing_ok=True)

    def _close_folder(self) -> None:
        if self.folder is not None:
            os.close(self.folder)


class _Syncer(threading.Thread):
    """Syncs a file to disk while it is being written, so that the last sync is short."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self.descriptor = descriptor
        self.done = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        sync = getattr(os, "fdatasync", os.fsync)
        try:
            while not self.done.wait(0.02):
                sync(self.descriptor)
        except OSError as error:
            self.error = error

    def stop(self) -> None:
        """Wait until it no longer uses the file."""
        self.done.set()
        self.join()

    def finish(self) -> None:
        """Stop; raise the error of a failed write, which the system reports only once."""
        self.stop()
        if self.error is not None:
            raise self.error


def pieces(blob: Blob, dtype: Any = None) -> Iterator[memoryview]:
    """The values of a blob, in order, as runs of bytes, little-endian.

    Args:
        blob: The blob; only :data:`PIECE` bytes of one that lies in a file are held in memory.
        dtype: Another type to convert to on the way.

    Yields:
        Bytes of whole values.
    """
    stored = np.dtype(dtype or blob.dtype).newbyteorder("<")
    values = blob.numpy().reshape(-1)
    step = PIECE // values.itemsize
    for start in range(0, values.size, step):
        piece = values[start : start + step]
        if blob.location is not None:
            _advise(piece, _POPULATE_READ)
        _count_output(piece.size * stored.itemsize)
        yield np.ascontiguousarray(piece, stored).view(np.uint8).data
        if blob.location is not None:
            _advise(piece, getattr(mmap, "MADV_DONTNEED", None))


_POPULATE_READ = 22 if sys.platform == "linux" else None
"""Linux's MADV_POPULATE_READ, which Python has no name for: all pages at once, not one fault for each few."""


def _advise(piece: np.ndarray, advice: int | None) -> None:
    """Tell the system that the pages of a reader's map are needed now, or not any more."""
    owner: Any = piece
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if advice is None or not isinstance(owner, mmap.mmap) or not hasattr(owner, "madvise"):
        return
    start = piece.__array_interface__["data"][0] - np.frombuffer(owner, np.uint8).__array_interface__["data"][0]
    first = start - start % mmap.PAGESIZE
    with contextlib.suppress(OSError):  # an older system does not know this advice
        owner.madvise(advice, first, start + piece.nbytes - first)
