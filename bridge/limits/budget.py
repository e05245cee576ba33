"""The memory and the output that one command may take, counted in one place.

A file of some kilobytes can ask for gigabytes: by a number in a header, or by data that
expand a thousandfold. Whoever sets memory aside for such a number asks here first::

    budget.take(4 * count, "net.npz: array 'fc6/weight'")

The limit is half of the machine's memory, or what ``--memory`` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bridge.errors import BudgetError, FormatError, UsageError

MAX_AXES = 32
"""Caffe's own limit (``kMaxBlobAxes``)."""
MAX_EXTENT = (1 << 31) - 1
FIELDS = 1 << 16
"""Any file may hold so many fields; a larger file may hold more."""
EXPANSION = 64
"""Compressed data may become so many times larger; weights become about twice as large."""
EXPANSION_FREE = 64 << 20
"""Up to so many bytes, compressed data may expand as they will: arrays of zeros expand a thousandfold."""

_SLACK = 1 << 29
"""The interpreter, its packages and the stacks of threads take up to so many bytes."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_CONTROL_GROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Budget:
    """Counts bytes in use against a limit.

    Attributes:
        limit: The most bytes that may be in use at once.
        used: The bytes in use now.
        given: Whether the user set the limit; it then stands in place of :data:`EXPANSION` as well.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self.given = limit is not None
        self.used = 0
        self._lock = threading.RLock()  # a finalizer may run in the middle of take()

    @property
    def limit(self) -> int:
        """The limit in bytes."""
        if self._limit is None:
            self._limit = memory() // 2
        return self._limit

    def check(self, nbytes: int, where: str) -> None:
        """Demand that so many bytes more are within the limit.

        Args:
            nbytes: The bytes.
            where: What they are for, for the message.

        Raises:
            BudgetError: They are not.
        """
        if self.used + nbytes > self.limit:
            held = f", beside {size(self.used)} in use" if self.used else ""
            message, expected = f"needs {size(nbytes)} of memory{held}", f"at most {size(self.limit)}"
            hint = f"--memory {megabytes(self.used + nbytes)} allows it"
            raise BudgetError(message, where=where, expected=expected, hint=hint)

    def take(self, nbytes: int, where: str) -> None:
        """Count bytes as in use, until :meth:`give` is called with them; see :meth:`check`."""
        with self._lock:
            self.check(nbytes, where)
            self.used += nbytes

    def give(self, nbytes: int) -> None:
        """Count bytes as free again."""
        with self._lock:
            self.used -= nbytes

    def load(self, nbytes: int, where: str, make: Callable[[], Any]) -> Any:
        """The array that ``make`` makes; its bytes count as in use until it is freed. See :meth:`check`."""
        self.take(nbytes, where)
        try:
            array = make()
        except BaseException:
            self.give(nbytes)
            raise
        owner = array
        while getattr(owner.base, "nbytes", None) is not None:
            owner = owner.base
        weakref.finalize(owner, self.give, nbytes).atexit = False
        return array

    @contextlib.contextmanager
    def held(self, nbytes: int, where: str) -> Iterator[None]:
        """Count bytes as in use within a block; see :meth:`check`."""
        self.take(nbytes, where)
        try:
            yield
        finally:
            self.give(nbytes)

    def expand(self, packed: int, unpacked: int, where: str) -> None:
        """Demand that compressed data do not expand more than any weights do.

        Args:
            packed: The file's size in bytes.
            unpacked: What all of its data come to.
            where: The file.

        Raises:
            FormatError: They do.
        """
        if not self.given and unpacked > max(EXPANSION_FREE, EXPANSION * packed):
            message, expected = f"expands from {size(packed)} to {size(unpacked)}", f"at most {EXPANSION} times as much"
            hint = f"--memory {megabytes(2 * unpacked)} allows it"
            raise FormatError(message, where=where, expected=expected, hint=hint)

    def picture(self, nbytes: int, width: int, height: int, where: str) -> None:
        """Demand that a picture's extents are worth its bytes; see :meth:`expand` and :meth:`check`.

        Args:
            nbytes: The size of its file.
            width: Its width in pixels.
            height: Its height.
            where: The file.
        """
        self.expand(nbytes, 4 * width * height, where)
        self.check(8 * width * height, where)


BUDGET = Budget()
"""The budget of this process."""


def set_limit(text: str) -> int:
    """Set the limit of :data:`BUDGET` from text such as ``4G`` or ``500M``; returns the bytes.

    Raises:
        UsageError: It is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    nbytes = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if nbytes < 1:
        raise UsageError(f"--memory {text}", expected="a size such as 4G or 500M")
    BUDGET._limit, BUDGET.given = nbytes, True
    return nbytes


def bind_process() -> None:
    """Have the system refuse this process more memory than the limit, whatever asks for it.

    What is not counted, a library's own arrays among it, then ends in a MemoryError. Mapped files do not count.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = BUDGET.limit + _SLACK
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def memory() -> int:
    """The machine's memory in bytes, or what of it this process's control group may use."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        found = 8 << 30
    for name in _CONTROL_GROUP:
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(name).read_text(encoding="ascii")))
    return found


def size(nbytes: int) -> str:
    """Bytes for people: ``1.5 GB``."""
    for unit, power in (("GB", 30), ("MB", 20), ("KB", 10)):
        if nbytes >= 1 << power:
            return f"{nbytes / (1 << power):,.1f} {unit}"
    return f"{nbytes} bytes"


def megabytes(nbytes: int) -> str:
    """A number of bytes, rounded up, as ``--memory`` takes it."""
    return f"{-(-nbytes // (1 << 20)) + 1}M"


def shape_problem(shape: Sequence[int]) -> str:
    """Why no array can have that shape, in a few words; empty if one can.

    Extents of zero do not make the others harmless: NumPy refuses 0 x 2^62 x 2^62 too.
    """
    if len(shape) > MAX_AXES:
        return f"shape has {len(shape)} axes, expected at most {MAX_AXES}"
    total = 1
    for extent in shape:
        if not 0 <= extent <= MAX_EXTENT:
            return f"shape has extent {extent}, expected 0 to {MAX_EXTENT}"
        total *= max(extent, 1)
    if total >= 1 << 59:
        return f"shape {' x '.join(map(str, shape))} is larger than any memory"
    return ""


def check_json(text: bytes, nbytes: int) -> str:
    """Why JSON text has more values than a file of so many bytes may hold; empty if it has not.

    Each value takes a hundred bytes of memory, and may be two characters of text.
    """
    values = text.count(b",") + text.count(b"[") + text.count(b"{") + text.count(b":")
    most = 16 * fields(nbytes)
    return f"has more than {most} values, which no model has" if values > most else ""


def parse_json(text: str | bytes) -> Any:
    """What JSON text says.

    Raises:
        ValueError: It is no JSON, or names a key of an object twice, of which one would be lost.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!a} stands twice in an object")
        found[key] = value
    return found


def fields(nbytes: int, share: int = 256) -> int:
    """How many fields a file, or a text, of so many bytes may hold: a small one cannot ask for much memory."""
    return FIELDS + nbytes // share
