"""Helper: the fast way to compute on the CPU, where Caffe's bits are not asked for.

A chain computes this way unless it is told to have Caffe's bits (:attr:`NetChain.exact`). Images are then
channels-last in memory: arrays still have the shape (N, C, H, W), but the values of one pixel lie side by side. So a
convolution is one matrix product over all pixels, and what is done per channel runs along the memory.

Work is done in parts that fit in the cache. Parts depend on shapes alone, so the number of threads decides about no
value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

from bridge.schema import Shape, count

_T = TypeVar("_T")
_FAST: ContextVar[bool] = ContextVar("fast", default=False)
PART_BYTES = 1 << 18
"""Bytes of values to compute at a time, so that they stay in the cache."""


@contextlib.contextmanager
def fast_way(wanted: bool = True) -> Iterator[None]:
    """A context in which functions compute the fast way, or do not."""
    token = _FAST.set(wanted)
    try:
        yield
    finally:
        _FAST.reset(token)


def is_wanted(*variables: Any) -> bool:
    """Whether a function of these variables is to be computed the fast way: one of them needs a gradient.

    What is frozen, and takes nothing that is trained, has Caffe's bits, so that its values can be kept.
    """
    return _FAST.get() and any(x is not None and x.requires_grad for x in variables)


def is_fast(x: Any, *others: Any) -> bool:
    """The same for a function of float32 images ``x`` (N, C, H, W) on the CPU."""
    images = x.ndim == 4 and type(x.array) is np.ndarray and x.dtype == np.float32 and x.size > 0
    return images and is_wanted(x, *others)


def channels_last(array: np.ndarray) -> np.ndarray:
    """An array (N, C, H, W) as (N, H, W, C), C-contiguous; a copy where its memory is not so."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def channels_first(array: np.ndarray) -> np.ndarray:
    """An array (N, H, W, C) as (N, C, H, W), of the same memory."""
    return array.transpose(0, 3, 1, 2)


_SCRATCH = threading.local()


def scratch(use: str, shape: Shape) -> np.ndarray:
    """A float32 array of any values, for a use that ends before the next of the same name in this thread.

    New memory costs more time than to write to it, because the system clears it first.
    """
    held: dict[str, np.ndarray] = vars(_SCRATCH)
    size = count(shape)
    if use not in held or held[use].size < size:
        held[use] = np.empty(0, np.float32)  # frees the old one first
        held[use] = np.empty(size, np.float32)
    return held[use][:size].reshape(shape)


def spans(length: int, step: int) -> Iterator[slice]:
    """Slices of about ``step`` that cover ``length``."""
    step = -(-length // max(1, -(-length // max(1, step))))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def each(work: Callable[[_T], object], parts: Iterable[_T]) -> None:
    """Do the work of all parts, with as many threads as matrix products have; each part by one of them."""
    todo = list(parts)
    number = _threads() if len(todo) > 1 else 1
    if number < 2:
        for part in todo:
            work(part)
        return
    with _one_thread_each():
        list(_pool(number).map(work, todo))


def _threads() -> int:
    """The threads of a matrix product, outside of all parts."""
    found = _blas()
    if found is None:
        return 1
    with _LOCK:
        return int(_BEFORE[0] if _BEFORE else found.num_threads)


_LOCK = threading.Lock()
_BEFORE: list[int] = []
"""The number of threads before parts began, and a 0 for each caller whose parts are under way."""


@functools.cache
def _blas() -> Any:
    """The BLAS of NumPy, where the number of its threads can be set."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return None
    import threadpoolctl

    folder = os.path.dirname(os.path.dirname(np.__file__))
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    own = [library for library in found if library.filepath.startswith(os.path.join(folder, "numpy"))]
    return next(iter((*own, *found)), None)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Products are computed by the thread that asks for them; several callers at a time leave the number as it was."""
    with _LOCK:
        if not _BEFORE:
            _BEFORE.append(_blas().num_threads)
            _blas().set_num_threads(1)
        _BEFORE.append(0)
    try:
        yield
    finally:
        with _LOCK:
            _BEFORE.pop()
            if len(_BEFORE) == 1:
                _blas().set_num_threads(_BEFORE.pop())


@functools.cache
def _pool(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "bridge")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has the pool and not its threads
