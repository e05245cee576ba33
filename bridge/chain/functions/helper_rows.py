"""Helper: random numbers of a part of a batch, as one process would draw them for the whole batch.

Where several processes compute the parts of one batch, each draws the numbers of all rows and takes its own. So
the number of processes does not change what is drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

_PART: ContextVar[tuple[slice, int] | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def part_of_batch(rows: slice, total: int) -> Iterator[None]:
    """A context in which arrays hold these rows of a batch of ``total`` rows."""
    token = _PART.set(None if rows == slice(0, total) else (rows, total))
    try:
        yield
    finally:
        _PART.reset(token)


def is_part() -> bool:
    """Whether arrays hold a part of a batch."""
    return _PART.get() is not None


def uniform(xp: Any, shape: tuple[int, ...]) -> Any:
    """Numbers in [0, 1) of this shape: those of the part's rows, where arrays hold a part of a batch.

    A first axis with several rows for each image of the batch, such as regions, is cut in the same proportion.

    Args:
        xp: NumPy or CuPy.
        shape: The rows first.
    """
    options = {} if xp is np else {"dtype": np.float32}
    rows, total = _PART.get() or (slice(0, shape[0]), shape[0])
    each, rest = divmod(shape[0], rows.stop - rows.start)
    if rest:  # rows that are no images: each process draws for itself
        return xp.random.rand(*shape, **options)
    whole = xp.random.rand(total * each, *shape[1:], **options)
    return whole[rows.start * each : rows.stop * each]
