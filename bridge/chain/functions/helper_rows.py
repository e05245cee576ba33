"""Helper: a part of a batch, as one process would compute it within the whole batch.

Where several processes compute the parts of one batch, each draws the random numbers of all rows and takes its own, and
products round each row as they round it in the whole batch. So the number of processes does not change what is drawn,
nor the values of an image before gradients are added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

_SMALL = 1 << 22
"""Multiply-adds up to which a product is computed for the whole batch: less than a millisecond."""
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


def product(a: Any, b: Any) -> Any:
    """``a`` times ``b``, with each row rounded as in the product for the whole batch, where that is small.

    OpenBLAS rounds rows of a small product otherwise than those of a large one, and on some processors a row by its
    place. So a small product is computed for the whole batch, with zeros for the rows that other processes have.

    Args:
        a: The part's rows (n, k), an array of NumPy or CuPy; on a GPU it is the plain product.
        b: (k, m).

    Returns:
        (n, m).

    Source: OpenBLAS ``sgemm_small_kernel_permit``.
    """
    part = _PART.get()
    if part is None or type(a) is not np.ndarray or not len(a):
        return a.dot(b)
    rows, total = part
    each, rest = divmod(len(a), rows.stop - rows.start)
    if rest or total * each * b.size > _SMALL:
        return a.dot(b)
    whole = np.zeros((total * each, a.shape[1]), a.dtype)
    place = slice(rows.start * each, rows.stop * each)
    whole[place] = a
    return whole.dot(b)[place]


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
