"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

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
        self._file: IO[bytes] | None = None

    @property
    def taken(self) -> bool:
        """Whether this process has the lock."""
        return self._file is not None

    def take(self) -> None:
        """Take the lock; the folder must exist.

        Raises:
            UsageError: Another run works in the folder.
            OutputError: The folder cannot be written to.
        """
        try:
            file = open(self._folder / ".lock", "ab")  # noqa: SIM115 (it stays open)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self._folder)) from None
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            hint = "wait for its end, or name another folder"
            raise UsageError("another run works in this folder", where=str(self._folder), hint=hint) from None
        except OSError:  # a file system without locks
            pass
        self._file = file

    def __enter__(self) -> RunLock:
        if (self._folder / self._marker).exists():
            self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise BlockingIOError from None
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
