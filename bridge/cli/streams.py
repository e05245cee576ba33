"""The process's own streams: closed ones, broken pipes, and a mapped file that is cut short."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

CLOSED = 141
"""The status where the reader of our output has left; the one of a process that SIGPIPE ends."""

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def prepare() -> None:
    """Make every stream there, and let no text be one that a stream cannot take.

    A process may be started without standard streams. The next file that it opens would
    then have the number of one, and be written over by whoever prints.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (it stays open)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _watch_maps()


def ended(status: Any) -> Any:
    """The status, after everything is written; :data:`CLOSED` where nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = CLOSED
    except OSError as error:
        if status != 2:  # else the reason was said: a write before this one failed, or the command ended early
            with contextlib.suppress(OSError):
                print(f"bridge: standard output: {error.strerror}", file=sys.stderr)
        status = 2
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python tries once more on its way out, and would complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return status


def _cut_short(_: int) -> None:
    """End the process with one line. Nothing is waited for, and nothing half-written has a name yet."""
    from bridge.errors import ChangedError, printable
    from bridge.limits.sources import OPENED, check_unchanged

    text = "a file that is being read was cut short"
    for path, stamp in list(OPENED.stamps.values()):
        try:
            check_unchanged(path, stamp)
        except ChangedError as error:
            text = str(error.args[0])
    os.write(2, f"bridge: {printable(text)}\n  hint: run the command again when nothing writes to the file\n".encode())
    os._exit(2)


def _watch_maps() -> None:
    """Turn SIGBUS, with which the system answers reading a mapped file behind its new end, into an error.

    Python's own handlers run between two instructions of Python, which never come: the read that failed would be
    tried again for ever. So this is a handler in C that calls back. The thread that it interrupts is copying values,
    and holds no lock of the memory allocator's.
    """
    number = getattr(signal, "SIGBUS", None)
    if number is None or sys.platform == "win32":
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    library.signal(int(number), _CALLED)


_CALLED = _HANDLER(_cut_short)
"""The handler as C calls it; it has to stay alive."""
