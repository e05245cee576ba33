"""InnerProduct: Chainer's ``linear`` in fewer steps, with a backward pass that adds no nodes to the graph.

Chainer computes gradients by functions of its own, so that second derivatives are possible.
Where they are not needed, the bookkeeping for these functions costs more time than the products of
a small layer.

Source: inner_product_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_memory import take
from bridge.chain.functions.helper_node import Node
from bridge.chain.functions.helper_parts import each, is_wanted, spans
from bridge.chain.functions.helper_rows import in_groups, place_in_batch, product
from bridge.schema import count

F = chainer.functions
_chainers: Any = F.connection.linear
_FEW = 8
"""Rows of a few, at most."""
_LARGE = 1 << 18
"""Values of a large weight, at least."""
_BLOCK = 8
"""Rows of a weight in a product that OpenBLAS computes without copying them first."""
_BLOCKS, _COLUMNS = 64, 2304
"""Of a weight, in a part of the work."""


def linear(x: Any, W: Any, b: Any = None, n_batch_axes: int = 1) -> Any:
    """``x W^T + b``.

    Args:
        x: Variable (batch axes..., other axes...). The other axes become one, of ``inputs`` values.
        W: Parameter or variable (outputs, inputs), of the dtype of ``x``.
        b: Parameter or variable (outputs), or ``None``.
        n_batch_axes: Number of batch axes, at least 1.

    Returns:
        Variable (batch axes..., outputs).

    Source: inner_product_layer.cpp; ``chainer.functions.linear``.
    """
    batch = x.shape[:n_batch_axes]
    if x.ndim != 2 or n_batch_axes != 1:
        x = F.reshape(x, (count(batch), count(x.shape[n_batch_axes:])))
    function = FewRows() if _are_few(x, W) else LinearFunction()
    y = function.apply((x, W) if b is None else (x, W, b))[0]
    return y if n_batch_axes == 1 else F.reshape(y, (*batch, y.shape[1]))


class LinearFunction(Node, _chainers.LinearFunction):
    """Chainer's function in fewer steps. Exporters know it by the name of the class."""

    _supports_static_optimizations = False  # for that, Chainer's forward is written in parts

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any]:
        """The products plus the bias."""
        self.retain_inputs((0, 1))
        x, W, *b = inputs
        y = self._products(x, W)
        if b:
            y += b[0]
        return (y,)

    def backward_accumulate(
        self, indexes: tuple[int, ...], grad_outputs: tuple[Any], grad_inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The gradients of the inputs ``indexes``, added to the gradients that they already have."""
        if chainer.config.enable_backprop:  # for a second derivative
            result: tuple[Any, ...] = super().backward_accumulate(indexes, grad_outputs, grad_inputs)
            return result
        x, W = (variable.array for variable in self.get_retained_inputs())
        gy = grad_outputs[0].array
        gradients = []
        for index, before in zip(indexes, grad_inputs, strict=True):
            if index == 2:
                gradients.append(_bias_gradient(gy, before))
                continue
            gradient = self._input_gradient(gy, W) if index == 0 else self._weight_gradient(gy, x)
            gradients.append(gradient if before is None else gradient + before.array)
        return tuple([chainer.as_variable(gradient) for gradient in gradients])

    def _products(self, x: Any, W: Any) -> Any:
        return product(x, W.T).astype(x.dtype, copy=False)

    def _input_gradient(self, gy: Any, W: Any) -> Any:
        return product(gy, W).astype(gy.dtype, copy=False)

    def _weight_gradient(self, gy: Any, x: Any) -> Any:
        return gy.T.dot(x).astype(x.dtype, copy=False)


class FewRows(LinearFunction):
    """The same for a large weight and few rows, without Caffe's bits: the weight is read once, and not copied."""

    def _products(self, x: Any, W: Any) -> Any:
        x, own = in_groups(x, _FEW)
        parts = np.empty((len(W) // _BLOCK, _BLOCK, len(x)), x.dtype)
        kernels, columns = W.reshape(*parts.shape[:2], -1), np.ascontiguousarray(x.T)
        each(lambda span: np.matmul(kernels[span], columns, out=parts[span]), spans(len(parts), _BLOCKS))
        return np.ascontiguousarray(parts.reshape(len(W), len(x)).T[own])

    def _input_gradient(self, gy: Any, W: Any) -> Any:
        total = np.zeros((len(gy), W.shape[1]), gy.dtype)

        def work(columns: slice) -> None:
            for rows in spans(len(W), _BLOCKS):
                for own, given in zip(total, gy, strict=True):
                    own[columns] += given[rows].dot(W[rows, columns])

        each(work, spans(W.shape[1], _COLUMNS))
        return total

    def _weight_gradient(self, gy: Any, x: Any) -> Any:
        gradient = take((gy.shape[1] // _BLOCK, _BLOCK, x.shape[1]))
        rows = np.ascontiguousarray(gy.T).reshape(*gradient.shape[:2], len(gy))
        each(lambda span: np.matmul(rows[span], x, out=gradient[span]), spans(len(gradient), _BLOCKS))
        return gradient.reshape(-1, x.shape[1])


def _are_few(x: Any, W: Any) -> bool:
    own = type(x.array) is type(W.array) is np.ndarray and x.dtype == W.dtype == np.float32
    return own and is_wanted(x, W) and place_in_batch(len(x))[1] <= _FEW and W.size >= _LARGE and len(W) % _BLOCK == 0


def _bias_gradient(gy: Any, before: Any) -> Any:
    """The sum of ``gy`` (N, outputs) over the batch, added to the gradient ``before``.

    Caffe computes it as a product with a vector of ones. OpenBLAS then adds the images in groups of eight to the
    gradient ``before``; for the last outputs % 4 outputs, it adds the sum of all images at once.

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
