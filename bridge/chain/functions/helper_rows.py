"""Helper: a part of a batch, as one process would compute it within the whole batch.

Where several processes compute the parts of one batch, each draws the random numbers of all rows and takes its own, and
what is computed from several images at once is computed as in the whole batch. So the number of processes does not
change what is drawn, nor the values of an image before gradients are added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

_SMALL = 1 << 22
"""Multiply-adds of a large product, at least: less than a millisecond."""
_LEAST_ROWS = 8
"""Rows of a large product, at least."""
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


def place_in_batch(rows: int) -> tuple[slice, int]:
    """Which rows of the whole batch an array with so many rows has, and how many rows the whole batch has.

    A first axis with several rows for each image of the batch, such as regions, is cut in the same proportion. For
    example, images 2 to 5 of 6 have 8 rows, 2 for each: these are rows 4 to 11 of 12. Rows that cannot belong to images
    are a batch of their own.
    """
    own, total = _PART.get() or (slice(0, rows), rows)
    each, rest = divmod(rows, max(1, own.stop - own.start))
    if rest or not each:
        return slice(0, rows), rows
    return slice(own.start * each, own.stop * each), total * each


def in_groups(x: np.ndarray, step: int) -> tuple[np.ndarray, slice]:
    """Rows in groups as the whole batch has them, with zeros for the rows that other processes have.

    What is computed from several images at once is rounded by their number and by the place of each. So it is computed
    from the same group in each process that has an image of it. In one process ``x`` itself is returned.

    Args:
        x: The part's rows first.
        step: Rows of a group, counted from the first row of the whole batch.

    Returns:
        The rows of all groups that the part has rows of, and the place of the part's rows in them.
    """
    own, total = place_in_batch(len(x))
    first, last = own.start // step * step, min(total, -(-own.stop // step) * step)
    return _among(x, own, slice(first, last))


def _among(x: np.ndarray, own: slice, more: slice) -> tuple[np.ndarray, slice]:
    """Rows ``own`` of a batch among zeros for others, as ``more`` rows of it; and the place of the own ones there."""
    if own == more:
        return x, slice(None)
    rows = np.zeros((more.stop - more.start, *x.shape[1:]), x.dtype)
    place = slice(own.start - more.start, own.stop - more.start)
    rows[place] = x
    return rows, place


def product(a: Any, b: Any) -> Any:
    """``a`` times ``b``, with each row rounded as in the product for the whole batch.

    OpenBLAS rounds rows of a small product otherwise than those of a large one, and on some processors a row by its
    place; NumPy computes the product of one row in another way. So a part has at least as many rows as make a product
    large, with zeros for rows that other processes have; a product that is small for the whole batch has all its rows.

    Args:
        a: The part's rows (n, k), an array of NumPy or CuPy; on a GPU it is the plain product.
        b: (k, m).

    Returns:
        (n, m).

    Source: OpenBLAS ``sgemm_small_kernel_permit``.
    """
    own, total = place_in_batch(len(a))
    if total == len(a) or type(a) is not np.ndarray:
        alone: np.ndarray = a.dot(b)
        return alone
    step = max(_LEAST_ROWS, -(-_SMALL // max(1, b.size)))
    first = min(own.start, max(0, total - step)) // step * step
    rows, place = _among(a, own, slice(first, min(total, -(-own.stop // step) * step)))
    found: np.ndarray = rows.dot(b)[place]
    return found


def uniform(xp: Any, shape: tuple[int, ...]) -> Any:
    """Numbers in [0, 1) of this shape: those of the part's rows, where arrays hold a part of a batch.

    Args:
        xp: NumPy or CuPy.
        shape: The rows first; where they cannot belong to images, each process draws for itself.
    """
    options = {} if xp is np else {"dtype": np.float32}
    own, total = place_in_batch(shape[0])
    return xp.random.rand(total, *shape[1:], **options)[own]
