"""Helper: rounding as in C, for the layers whose regions have rounded corners."""

from __future__ import annotations

from typing import Any


def round_half_away(xp: Any, x: Any) -> Any:
    """C's ``round``: 0.5 becomes 1 and -2.5 becomes -3, where NumPy rounds halves to the even number.

    Args:
        xp: NumPy or CuPy, whichever ``x`` is of.
        x: Array of any shape.

    Returns:
        Array of the same shape and dtype.

    Source: C standard, ``round``.
    """
    whole = xp.floor(xp.absolute(x))
    return xp.sign(x) * (whole + (xp.absolute(x) - whole >= 0.5))
