"""One run at a time in a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

from bridge.errors import OutputError, UsageError


class RunLock:
    """A context that keeps other runs out of a folder; the system gives the lock back if the process is killed.

    Args:
        folder: The run's folder. Where it holds a run the context takes the lock, else :meth:`take` does later.
        marker: Name of the file that a folder with a run has.

    Raises:
        UsageError: Another run works in the folder.
        OutputError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, marker: str) -> None:
        self._folder, self._marker = folder, marker
        self._handle: int | None = None

    @property
    def taken(self) -> bool:
        """Whether this process has the lock."""
        return self._handle is not None

    def take(self) -> None:
        """Take the lock; the folder must exist.

        Raises:
            UsageError: Another run works in the folder.
            OutputError: The folder cannot be written to.
        """
        try:
            handle = _opened(self._folder)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self._folder)) from None
        try:
            _lock(handle)
        except BlockingIOError:
            os.close(handle)
            hint = "wait for its end, or name another folder"
            raise UsageError("another run works in this folder", where=str(self._folder), hint=hint) from None
        except OSError:  # a file system without locks
            pass
        self._handle = handle

    def __enter__(self) -> RunLock:
        if (self._folder / self._marker).exists():
            self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)


def _opened(folder: Path) -> int:
    """The folder itself, so that no file is left behind; on Windows, which locks files only, one in it."""
    if sys.platform == "win32":
        return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    return os.open(folder, os.O_RDONLY)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            raise BlockingIOError from None
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
