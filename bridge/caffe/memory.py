"""The memory behind blobs: made when it is needed, filled when it is read.

pycaffe hands out NumPy arrays that are the blobs' own memory. A write through such an array cannot
be seen, but handing one out can: it goes through :meth:`Memory.expose`. And CPython counts who holds
an array, so that an array that nobody holds any more cannot be written any more. From these two facts
follows what may have changed, at the cost of a few counters.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from bridge.schema import Shape, count

_VERSIONS = itertools.count(1)
_PIECE = 1 << 18
"""Values that are compared at a time: they stay in the processor's cache."""


class Pending(Protocol):
    """A computation that has not happened yet."""

    def fill(self, memory: Memory) -> None:
        """Compute, and :meth:`Memory.put` the values."""


class Memory:
    """float32 values that several blobs may share.

    Args:
        size: Number of values.
        make: Gives the first values, in any shape; zeros by default.

    Attributes:
        size: Number of values that there is room for.
        read: Whether somebody read the values since this was last set to False.
        pending: What computes the values; ``None`` if they are there.
    """

    __slots__ = ("__weakref__", "_array", "_make", "pending", "read", "size")

    def __init__(self, size: int, make: Callable[[], np.ndarray] | None = None) -> None:
        self.size = size
        self._make = make
        self._array: np.ndarray | None = None
        self.pending: Pending | None = None
        self.read = False

    def array(self) -> np.ndarray:
        """All values, flat, for reading and writing here."""
        return self.peek()

    def peek(self) -> np.ndarray:
        """All values, flat, for reading only."""
        if self.pending is not None:
            self.pending.fill(self)
            self.pending = None
        return self._own().reshape(-1)

    def _own(self) -> np.ndarray:
        if self._array is None:
            made = np.zeros(self.size, np.float32) if self._make is None else self._make()
            if made.base is not None or made.dtype != np.float32 or not made.flags.c_contiguous:
                made = np.array(made, np.float32, order="C")
            self._array, self._make = made, None
        return self._array

    def expose(self, shape: Sequence[int]) -> np.ndarray:
        """The first values in ``shape``, as an array for a user to keep and to write to."""
        self.read = True
        return self.array()[: count(shape)].reshape(shape)

    def held(self) -> bool:
        """Whether somebody still has an array of the values, and so sees and makes changes."""
        return self._array is not None and sys.getrefcount(self._array) > 2

    def grow(self, size: int) -> None:
        """Make room for more values, which are zeros then; arrays of the old ones are cut off."""
        if size > self.size:
            self.size, self._array, self._make, self.pending = size, None, None, None

    def put(self, values: np.ndarray) -> None:
        """Take over new values; into the same array if somebody holds it.

        Args:
            values: float32, C-contiguous; not used by the caller any more.
        """
        self.pending = None
        alone = values.base is None or not isinstance(values.base, np.ndarray)
        if alone and values.size == self.size and values.flags.writeable and not self.held():
            self._array, self._make = values, None
        else:
            self._own().reshape(-1)[: values.size] = values.reshape(-1)

    def later(self, pending: Pending) -> None:
        """Let ``pending`` compute the values when they are asked for."""
        self.pending, self.read = pending, False


class ParamMemory(Memory):
    """Values that sessions were made with, and that a user may have changed since.

    A session has the array ``_synced``. The array that users get is a copy of it, made when the first
    of them asks; :meth:`sync` compares the two.

    Attributes:
        version: Of the values of the last :meth:`sync`; no two memories, and no two states of one, have the same.
    """

    __slots__ = ("_synced", "version")

    def __init__(self, size: int, make: Callable[[], np.ndarray] | None = None) -> None:
        super().__init__(size, make)
        self._synced: np.ndarray | None = None
        self.version = 0

    def array(self) -> np.ndarray:
        """All values, flat, for reading and writing here."""
        own = self._own()
        if own is self._synced:
            own = self._array = own.copy()
        return own.reshape(-1)

    def held(self) -> bool:
        """Whether somebody still has an array of the values."""
        return self._array is not self._synced and super().held()

    def put(self, values: np.ndarray) -> None:
        """Take over new values; into the same array if somebody holds it."""
        if self._array is self._synced and self._array is not None:
            self._array = None
        super().put(values)

    def changed(self) -> bool:
        """Whether the values are others than those of the last :meth:`sync`."""
        own, synced = self._array, self._synced
        return synced is not None and own is not synced and (own is None or not _same(own, synced))

    def sync(self) -> int:
        """Settle what the values are; returns the version."""
        if self._synced is None or self.changed():
            self.version = next(_VERSIONS)
            self._synced = self._own().copy() if self.held() else self._own()
        elif self._array is not self._synced and not self.held():
            self._array = self._synced
        return self.version

    def synced(self, shape: Shape) -> np.ndarray:
        """The values of the last :meth:`sync`, which stay as they are."""
        return (self._own() if self._synced is None else self._synced).reshape(shape)

    def release(self) -> None:
        """Forget the values of the last :meth:`sync`; there are no sessions any more."""
        self._synced = None


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have the same bits."""
    left, right = a.reshape(-1).view(np.uint32), b.reshape(-1).view(np.uint32)
    places: Any = range(0, left.size, _PIECE)
    return left.size == right.size and all(np.array_equal(left[i : i + _PIECE], right[i : i + _PIECE]) for i in places)
