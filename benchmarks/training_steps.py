"""What the two sides of ``chain.py --torch`` share: the numbers in the nets, and a child that makes one step at a time.

It imports NumPy alone, so that any interpreter with NumPy runs it.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

BATCH = 4
"""Images in a step."""


def numbers(place: int, role: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of the array ``place`` of a net: the same in both frameworks, and of a size that keeps values near 1.

    Args:
        place: Counts the net's arrays in the order of its layers.
        role: ``weight``, ``bias``, ``mean``, ``variance``, ``gamma`` or ``beta``.
        shape: Its shape.
    """
    values = np.random.default_rng(place).random(shape, np.float32)
    values -= np.float32(0.5)
    if role == "weight":
        values *= np.float32(math.sqrt(24 / math.prod(shape[1:])))
    elif role in ("variance", "gamma"):
        values += 1
    else:
        values *= np.float32(0.2)
    return values


def images(size: int) -> np.ndarray:
    """The images of a step, (4, 3, size, size) float32."""
    return np.random.default_rng(1000).standard_normal((BATCH, 3, size, size)).astype(np.float32)


def gradient(classes: int) -> np.ndarray:
    """The gradient of the scores, (4, classes) float32."""
    return np.random.default_rng(1001).standard_normal((BATCH, classes)).astype(np.float32)


def serve(about: dict[str, Any], step: Callable[[], tuple[np.ndarray, Iterable[np.ndarray]]]) -> None:
    """Make steps on request, until standard input ends.

    The request ``step`` makes one and answers its seconds, by the wall's clock and the processor's. ``look`` makes one
    and answers the scores and the norm of each gradient. ``memory`` answers the most that the process has held, in MiB.

    Args:
        about: What to answer first.
        step: Makes a step: the scores, and the gradients in the order of the net's trained arrays.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    about["before"] = _memory()
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        request, found = line.strip(), {}
        if request == "memory":
            found = {"most": _memory()}
        else:
            wall, own = time.perf_counter(), time.process_time()
            scores, gradients = step()
            found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - own}
            if request == "look":
                norms = [float(np.linalg.norm(values)) for values in gradients]
                found.update(scores=scores.ravel().tolist(), norms=norms)
            del scores, gradients
        print(json.dumps(found), file=answers, flush=True)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
