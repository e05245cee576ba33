"""Matrix products of InnerProduct: Chainer's, with fewer steps, and a backward pass that makes no functions of its own.

Chainer differentiates by applying further functions, so that they can be differentiated once
more. Where nobody asks for that, their bookkeeping costs more than a small layer's products.

Source: inner_product_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.node import Node
from bridge.schema import count

F = chainer.functions
_chainers: Any = F.connection.linear


def linear(x: Any, W: Any, b: Any = None, n_batch_axes: int = 1) -> Any:
    """``x W^T + b``.

    Args:
        x: Variable (batch axes..., other axes...); the other axes are taken as one.
        W: (outputs, inputs), of x's dtype.
        b: (outputs), or ``None``.
        n_batch_axes: How many batch axes ``x`` has, 1 or more.

    Returns:
        Variable (batch axes..., outputs).

    Source: ``chainer.functions.linear``.
    """
    batch = x.shape[:n_batch_axes]
    if x.ndim != 2 or n_batch_axes != 1:
        x = F.reshape(x, (count(batch), count(x.shape[n_batch_axes:])))
    y = LinearFunction().apply((x, W) if b is None else (x, W, b))[0]
    return y if n_batch_axes == 1 else F.reshape(y, (*batch, y.shape[1]))


class LinearFunction(Node, _chainers.LinearFunction):
    """Chainer's function, by its name (exporters know it by that), with a shorter way there and back."""

    _supports_static_optimizations = False  # for that, Chainer's forward is written in parts

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The products, and the bias on top."""
        self.retain_inputs((0, 1))
        x, W, *b = inputs
        y = x.dot(W.T).astype(x.dtype, copy=False)
        if b:
            y += b[0]
        return (y,)

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradients of those inputs that are asked for, on top of those that are there."""
        if chainer.config.enable_backprop:  # for a second derivative
            made: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return made
        x, W = (variable.array for variable in self.get_retained_inputs())
        gy = grad_outputs[0].array
        found = []
        for index, before in zip(indexes, grad_inputs, strict=True):
            if index == 2:
                found.append(_bias_gradient(gy, before))
                continue
            gradient = gy.dot(W).astype(x.dtype, copy=False) if index == 0 else gy.T.dot(x).astype(W.dtype, copy=False)
            found.append(gradient if before is None else gradient + before.array)
        return tuple([chainer.as_variable(gradient) for gradient in found])


def _bias_gradient(gy: Any, before: Any) -> Any:
    """The sum over the batch of (N, outputs), on top of ``before``; by a product with ones, in whose order Caffe adds.

    OpenBLAS adds eight images at a time to what is there, for as many outputs as are a multiple of
    four, and for the others the sum of all images.

    Source: OpenBLAS ``sgemv_n_4.c``.
    """
    if type(gy) is not np.ndarray:
        total = gy.sum(axis=0)
        return total if before is None else total + before.array
    total = gy.T.dot(np.ones(len(gy), gy.dtype))
    if before is None:
        return total
    total += before.array
    fours = gy.shape[1] & -4
    if fours:
        rows = np.zeros((len(gy) + 8, gy.shape[1]), gy.dtype)
        rows[0], rows[8:] = before.array, gy
        total[:fours] = rows.T.dot(np.ones(len(rows), gy.dtype))[:fours]
    return total
