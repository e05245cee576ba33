"""Rounding as Caffe does where a Caffe run is replayed: one BLAS thread, kernels with fused multiply-adds.

A replay, ``finetune --solver`` over a sequence of fixed batches, is there to be compared with
Caffe's own run. The chain and the update rules compute in Caffe's order; but OpenBLAS takes its
kernels by the processor's type and splits matrices by the number of threads, so that bits depend on
both. With the kernels for Haswell and one thread they are the same on every x86-64 processor of
the last ten years, and those of the Caffe on PyPI.

OpenBLAS reads its variables when NumPy is imported, so this has to come before that.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import sys
import zipfile
from collections.abc import Sequence

_CHOICES = {
    "OPENBLAS_CORETYPE": ("Haswell", ("OPENBLAS_CORETYPE",)),
    "OPENBLAS_NUM_THREADS": ("1", ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "GOTO_NUM_THREADS")),
}
"""Variable -> its value, and those with which users choose for themselves."""


def follow_caffe(arguments: Sequence[str]) -> None:
    """Set the environment for a replay, if that is what the arguments of the command line ask for."""
    if "numpy" in sys.modules or not _has_kernels():
        return
    if _value(arguments, "--solver") and _are_batches(_value(arguments, "--data")):
        for name, (value, own) in _CHOICES.items():
            if not any(variable in os.environ for variable in own):
                os.environ[name] = value


def _value(arguments: Sequence[str], option: str) -> str:
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""


def _are_batches(path: str) -> bool:
    """Whether an archive's images have an axis for batches. Source: the format of .npy files, numpy.lib.format."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
            head = file.read(256)
        shape = re.search(rb"'shape': (\([\d, ]*\))", head)
        return shape is not None and len(ast.literal_eval(shape[1].decode())) == 5
    except (OSError, KeyError, zipfile.BadZipFile, ValueError, SyntaxError):
        return False


def _has_kernels() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx2" in flags and "fma" in flags
