"""Softmax: on the CPU with Caffe's bits, elsewhere Chainer's own.

Exponentials are those of Caffe's C library, and sums have the order in which OpenBLAS computes a
product with a vector of ones.

Source: softmax_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.libm import expf
from bridge.schema import count

_chainers: Any = chainer.functions.activation.softmax


def softmax(x: Any, axis: int = 1) -> Any:
    """``exp(x) / sum exp(x)`` along an axis.

    Args:
        x: Variable of any shape.
        axis: The axis of the classes.

    Returns:
        Variable of the shape and dtype of ``x``.

    Source: softmax_layer.cpp; ``chainer.functions.softmax``.
    """
    return Softmax(axis).apply((x,))[0]


class Softmax(_chainers.Softmax):
    """Chainer's function with another way to compute it on the CPU. Exporters know it by the name of the class."""

    def forward(self, inputs: tuple[Any]) -> tuple[Any]:
        """The softmax."""
        (x,) = inputs
        if type(x) is not np.ndarray or x.dtype != np.float32:
            result: tuple[Any] = super().forward(inputs)
            return result
        self.retain_outputs((0,))
        return (normalized(np, np.ascontiguousarray(x).reshape(as_three_axes(x, self.axis))).reshape(x.shape),)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input."""
        return _SoftmaxGradient(self.axis).apply((*self.get_retained_outputs(), *grad_outputs))


class _SoftmaxGradient(_chainers._SoftmaxGrad):
    def forward(self, inputs: tuple[Any, Any]) -> tuple[Any]:
        self.retain_inputs((0, 1))
        y, gy = inputs
        gx = gy - (y * gy).sum(axis=self.axis, keepdims=True)
        gx *= y
        return (gx,)


def as_three_axes(x: Any, axis: int) -> tuple[int, int, int]:
    """The shape (outer, classes, inner) to which ``x`` can be reshaped, ``axis`` being that of the classes.

    For example, (2, 3, 4, 5) with axis 1 gives (2, 3, 20).
    """
    axis %= x.ndim
    return count(x.shape[:axis]), x.shape[axis], count(x.shape[axis + 1 :])


def normalized(xp: Any, x: Any) -> Any:
    """The softmax over the classes.

    On the CPU, float32 values have Caffe's bits: where ``inner`` is 1, exponentials are added in groups of four,
    otherwise in the order of a product in OpenBLAS.

    Args:
        xp: NumPy or CuPy, whichever ``x`` is of.
        x: (outer, classes, inner), C-contiguous.

    Returns:
        Array of the shape and dtype of ``x``.

    Source: softmax_layer.cpp.
    """
    if xp is not np or x.dtype != np.float32:
        result = xp.exp(x - x.max(axis=1, keepdims=True))
        result /= result.sum(axis=1, keepdims=True)
        return result
    if x.shape[2] > 1:
        result = x - x.max(axis=1, keepdims=True)
        expf(result, out=result)
        result /= np.matmul(result.swapaxes(1, 2), np.ones(x.shape[1], x.dtype))[:, None]
        return result
    x = x[:, :, 0]
    result = expf(x - np.maximum.reduce(x, axis=1, keepdims=True))
    result /= _sums_by_fours(result)
    return result[:, :, None]


def _sums_by_fours(rows: np.ndarray) -> np.ndarray:
    """The sum of each row, (rows, 1), by sums of four values each. Source: OpenBLAS ``sgemv_n_4.c``."""
    stop = rows.shape[1] & -4
    fours = rows[:, 0:stop:4] + rows[:, 1:stop:4]
    fours += rows[:, 2:stop:4]
    fours += rows[:, 3:stop:4]
    sums: np.ndarray = np.add.accumulate(np.concatenate([fours, rows[:, stop:]], axis=1), axis=1)
    return sums[:, -1:]
