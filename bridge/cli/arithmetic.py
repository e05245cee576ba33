"""How a run that follows a Caffe solver adds its numbers up.

Caffe's recipes are compared with what Caffe itself trained, to the last digits. A sum of
products depends on the order of its terms, and that on the kernels of the BLAS: those for
AVX-512 add up in another order than the ones for AVX2 that a Caffe of its time runs on.
After some steps of Adam a near-tie in a pooling window can fall the other way, and a weight
is off by 1e-5. With AVX2's kernels and one thread the bits are Caffe's.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

CHOICES = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
"""Variables by which the user has chosen already; OpenBLAS reads them when NumPy is imported."""


def add_up_as_caffe() -> bool:
    """Choose NumPy's kernels before it is imported, for ``--solver`` on the command line.

    Does nothing where NumPy is imported already, where the user has chosen, or where the
    processor cannot run these kernels.

    Returns:
        Whether they were chosen.
    """
    if "numpy" in sys.modules or any(name in os.environ for name in CHOICES[:2]) or not _has_avx2():
        return False
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    return True


def _has_avx2() -> bool:
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("flags")[2]
    except OSError:
        return False
    first = flags.partition("\n")[0].split()
    return "avx2" in first and "fma" in first
