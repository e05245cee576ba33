"""The memory that the C library keeps."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give memory that was freed back to the system.

    The C library of Linux keeps up to 64 MB of it, and what lies between values that live on. Where it cannot be
    asked to give it back, nothing happens.

    Source: glibc ``malloc_trim``, and ``DEFAULT_MMAP_THRESHOLD_MAX`` of ``malloc.c``.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)
