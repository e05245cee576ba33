"""Helper: layers with any number of batch axes, by functions that take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.chain.functions import chainer

F = chainer.functions


def fold_batch_axes(x: Any, axis: int, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to ``x`` with all axes before ``axis`` as one batch axis.

    For example, ``x`` of shape (2, 3, 4, 5, 6) with ``axis`` 2 becomes (6, 4, 5, 6); a result of shape (6, 8, 5, 6)
    becomes (2, 3, 8, 5, 6).

    Args:
        x: Variable (batch axes..., channels, spatial axes...).
        axis: The channel axis; negative values count from the end.
        function: Takes and returns a variable (batch, channels, spatial axes...) with at least one spatial axis.

    Returns:
        Variable (batch axes..., channels, spatial axes...).
    """
    axis %= x.ndim
    if axis == 1 and x.ndim > 2:
        return function(x)
    space = x.shape[axis + 1 :]
    y = function(F.reshape(x, (-1, x.shape[axis], *(space or (1,)))))
    return F.reshape(y, (*x.shape[:axis], y.shape[1], *y.shape[2:][: len(space)]))
