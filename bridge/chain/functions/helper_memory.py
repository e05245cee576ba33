"""Helper: arrays whose memory is used again, because new memory can cost more time than what is computed in it.

The system clears memory that it hands out, page by page; a training step would ask for all of its memory anew. Here
an array's memory is taken again as soon as nothing refers to the array, by the next array that fits.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from bridge.schema import Shape, count

_LEAST = 1 << 18
"""Values of an array that is kept, at least; smaller ones cost little."""
_AGE = 1024
"""How many arrays may be taken until memory that none of them uses is given back."""


@dataclass
class _Held:
    """Memory of an array, and when it was last taken."""

    memory: np.ndarray
    taken: int


_LOCK = threading.Lock()
_HELD: dict[int, list[_Held]] = {}
_now = 0


def take(shape: Shape) -> np.ndarray:
    """A float32 array of any values, C-contiguous; its memory is used again when nothing refers to it or to a view.

    Args:
        shape: Its shape.
    """
    size = count(shape)
    if size < _LEAST:
        return np.empty(shape, np.float32)
    with _LOCK:
        return _taken(size).reshape(shape)


def _taken(size: int) -> np.ndarray:
    global _now
    _now += 1
    if _now % _AGE == 0:
        _give_back()
    sizes = sorted(_HELD)
    for fitting in sizes[bisect_left(sizes, size) : bisect_right(sizes, 2 * size)]:
        for held in _HELD[fitting]:
            if _is_free(held):
                held.taken = _now
                return held.memory[:size]
    held = _Held(np.empty(size, np.float32), _now)
    _HELD.setdefault(size, []).append(held)
    return held.memory[:]


def _is_free(held: _Held) -> bool:
    """Whether no view refers to the memory: every view of NumPy's does, through its ``base``."""
    return _references(held) == _OWN


def _references(held: _Held) -> int:
    return sys.getrefcount(held.memory)


def _give_back() -> None:
    for size, several in list(_HELD.items()):
        several[:] = [held for held in several if held.taken > _now - _AGE or not _is_free(held)]
        if not several:
            del _HELD[size]


_unused = _Held(np.empty(0, np.float32), 0)
_OWN = _references(_unused)
"""What the count is where :class:`_Held` alone refers to the memory."""
