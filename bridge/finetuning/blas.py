"""The kernels and the number of threads that NumPy's matrix products are computed with.

Both decide about the last bit of a sum, so a run fixes what it can. The number of threads is a setting of the run,
and is set while the run computes. The kernels are chosen by OpenBLAS for the processor at hand, at the moment when
NumPy is imported: :func:`exact_arithmetic` chooses them before.

This module imports neither NumPy nor anything that does.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import platform
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KERNELS = "Haswell"
"""The kernels that Caffe's runs were recorded with: every x86-64 processor with AVX2 and FMA has them."""
_VARIABLE = "OPENBLAS_CORETYPE"
_HOW = f"call bridge.finetuning.exact_arithmetic() before NumPy is imported, or set {_VARIABLE}={KERNELS}"


@dataclass(frozen=True)
class Blas:
    """A BLAS library that this process has loaded.

    Attributes:
        library: ``openblas``, ``mkl``, ``blis``, ...
        version: Its version, such as ``0.3.31``; empty where the library does not say.
        kernels: The processor that its kernels are for, such as ``Haswell``; empty where the library does not say.
    """

    library: str
    version: str
    kernels: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.library, self.version, self.kernels)))


def exact_arithmetic() -> bool:
    """Compute matrix products with the kernels that give a replay of a Caffe run Caffe's bits.

    Call it before NumPy is imported, for example as the first line of a script. It sets the environment variable
    ``OPENBLAS_CORETYPE`` of this process to ``Haswell``; a value that the user has set stays. On a processor that
    cannot run these kernels it does nothing. ``bridge finetune`` calls it where it replays a Caffe run.

    Returns:
        Whether matrix products have these kernels. ``False`` if NumPy was imported with other kernels before, if the
        user chose others, or if the processor does not have them.

    Source: OpenBLAS, driver/others/dynamic.c (``OPENBLAS_CORETYPE``).
    """
    if "numpy" in sys.modules:
        found = loaded()
        return found is not None and found.kernels == KERNELS
    if not has_kernels():
        return False
    return os.environ.setdefault(_VARIABLE, KERNELS) == KERNELS


def has_kernels() -> bool:
    """Whether this processor runs the kernels for Haswell: x86-64 Linux with AVX2 and FMA."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx2" in flags and "fma" in flags


def holds_batches(path: str) -> bool:
    """Whether a file is an .npz archive whose array ``x`` is a sequence of batches, (batches, N, C, H, W).

    It reads the header itself, because NumPy must not be imported yet.

    Source: the format of .npy files, numpy.lib.format.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
            head = file.read(256)
        shape = re.search(rb"'shape': (\([\d, ]*\))", head)
        return shape is not None and len(ast.literal_eval(shape[1].decode())) == 5
    except (OSError, KeyError, zipfile.BadZipFile, ValueError, SyntaxError):
        return False


def loaded() -> Blas | None:
    """The BLAS that NumPy computes with; ``None`` where that cannot be found out."""
    import numpy as np

    folder = os.path.dirname(os.path.dirname(np.__file__))
    found = [library for library in _controllers() if library["user_api"] == "blas"]
    own = [library for library in found if str(library["filepath"]).startswith(os.path.join(folder, "numpy"))]
    for library in (*own, *found):
        version = str(library["version"] or "")
        return Blas(str(library["internal_api"]), version, str(library.get("architecture") or ""))
    return None


def remark() -> str:
    """What keeps a replay from Caffe's bits in this process, for the user; empty if nothing does."""
    found = loaded()
    if found is not None and found.kernels == KERNELS:
        return ""
    what = "an unknown BLAS" if found is None else str(found)
    how = _HOW if has_kernels() else f"they need an x86-64 Linux with AVX2, and NumPy with OpenBLAS's {KERNELS} kernels"
    return (
        f"matrix products are computed with {what}: values may differ from Caffe's in the last place; for Caffe's "
        f"bits {how}"
    )


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute matrix products with this number of threads while the context is entered.

    Where :mod:`threadpoolctl` is missing nothing changes; :func:`unlimited` then says so.
    """
    if importlib.util.find_spec("threadpoolctl") is None:
        yield
        return
    import threadpoolctl

    with threadpoolctl.threadpool_limits(number, user_api="blas"):
        yield


def unlimited() -> str:
    """What keeps the number of threads from being set, for the user; empty if nothing does."""
    if importlib.util.find_spec("threadpoolctl") is not None:
        return ""
    return (
        "threadpoolctl is not installed, so OMP_NUM_THREADS and the number of cores decide about the last place of "
        "values; pip install threadpoolctl"
    )


def _controllers() -> list[dict[str, Any]]:
    if importlib.util.find_spec("threadpoolctl") is None:
        return []
    import threadpoolctl

    found: list[dict[str, Any]] = threadpoolctl.threadpool_info()
    return found
