"""What the layers of Caffe's forks compute, in plain NumPy, written down from the forks' own sources.

Nothing here uses the package's layer classes: parameters are read from the definition, field
by field, and values are computed as the source does, loop by loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridge.schema.message import Message

Arrays = Sequence[np.ndarray]
REFERENCES: dict[str, Callable[[Message, Arrays, Arrays], list[np.ndarray]]] = {}
"""Layer type -> function of (definition, blobs, bottoms) to tops."""

F = np.float32


def reference(*types: str) -> Callable[[Any], Any]:
    """Register the decorated function."""

    def decorate(function: Any) -> Any:
        for name in types:
            REFERENCES[name] = function
        return function

    return decorate


def c_round(x: float) -> int:
    """C's ``round``: halves away from zero."""
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), x)) if abs(x) < 2**22 else int(x)
