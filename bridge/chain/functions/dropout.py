"""Dropout, without a function of the graph where nobody asks for a gradient.

Above a frozen trunk the values that are dropped take no gradient, and Chainer's bookkeeping
for them costs more than the dropping.

Source: dropout_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer

F = chainer.functions


def dropout(x: Any, ratio: float) -> Any:
    """In training, zero values with the probability ``ratio`` and scale the rest by ``1 / (1 - ratio)``.

    The random numbers, and the values bit for bit, are those of ``chainer.functions.dropout``.

    Args:
        x: Variable of any shape.
        ratio: 0 to below 1.

    Source: ``chainer.functions.dropout``.
    """
    if x.requires_grad or type(x.array) is not np.ndarray or not chainer.config.train:
        return F.dropout(x, ratio)
    kept = np.random.rand(*x.shape) >= ratio
    y = x.array * kept
    y *= x.dtype.type(1 / (1 - ratio))
    return chainer.as_variable(y)
