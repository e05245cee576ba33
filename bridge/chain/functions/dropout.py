"""Dropout: without a node in Chainer's graph where no gradient is needed.

The input of the first trained layer above a frozen trunk needs no gradient, and Chainer's
bookkeeping for the node costs more time than the dropout itself.

Source: dropout_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_rows import is_part, uniform

F = chainer.functions


def dropout(x: Any, ratio: float = 0.5) -> Any:
    """In training, zero values with the probability ``ratio`` and scale the rest by ``1 / (1 - ratio)``.

    The random numbers, and the values bit for bit, are those of ``chainer.functions.dropout``; of a part of a batch,
    those of its rows.

    Args:
        x: Variable of any shape.
        ratio: At least 0 and less than 1.

    Returns:
        Variable of the shape and dtype of ``x``.

    Source: dropout_layer.cpp; ``chainer.functions.dropout``.
    """
    if is_part() and chainer.config.train:
        kept = uniform(x.xp, x.shape) >= ratio
        return F.dropout(x, ratio, mask=x.dtype.type(1 / (1 - ratio)) * kept)
    if x.requires_grad or type(x.array) is not np.ndarray or not chainer.config.train:
        return F.dropout(x, ratio)
    kept = np.random.rand(*x.shape) >= ratio
    y = x.array * kept
    y *= x.dtype.type(1 / (1 - ratio))
    return chainer.as_variable(y)
