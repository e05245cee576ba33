"""The softmax, and its loss as one function: the steps of a composition would cost more than what they compute.

On the CPU both have the bits that Caffe's have: exponentials as in its C library, and sums in the
order in which OpenBLAS adds up a product with ones.

Source: softmax_layer.cpp, softmax_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.losses import counted_labels
from bridge.chain.functions.node import Node
from bridge.chain.libm import expf
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.softmax_with_loss import SoftmaxWithLoss

F = chainer.functions
_chainers: Any = F.activation.softmax
_SMALLEST = np.finfo(np.float32).tiny


def softmax(x: Any, axis: int = 1) -> Any:
    """``exp(x) / sum exp(x)`` along an axis of a variable of any shape, in its dtype.

    Source: softmax_layer.cpp; ``chainer.functions.softmax``.
    """
    return Softmax(axis).apply((x,))[0]


class Softmax(_chainers.Softmax):
    """Chainer's softmax, by its name (exporters know it by that), with another way to compute it on the CPU."""

    def forward(self, inputs: tuple[Any]) -> tuple[Any]:
        """The softmax of values of any shape."""
        (x,) = inputs
        if type(x) is not np.ndarray or x.dtype != np.float32:
            made: tuple[Any] = super().forward(inputs)
            return made
        self.retain_outputs((0,))
        return (_normalised(np, np.ascontiguousarray(x).reshape(_shape(x, self.axis))).reshape(x.shape),)

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


def _shape(x: Any, axis: int) -> tuple[int, int, int]:
    """The shape (outer, classes, inner) that ``x`` may be taken as."""
    axis %= x.ndim
    return count(x.shape[:axis]), x.shape[axis], count(x.shape[axis + 1 :])


def softmax_loss(x: Any, labels: Any, layer: SoftmaxWithLoss) -> Any:
    """``-log softmax(x)[label]``, the softmax at least the smallest normal float32, over the places that count.

    Args:
        x: Variable (axes..., classes at ``layer.axis``, axes...).
        labels: Variable of one label per place, as numbers.
        layer: The layer's parameters.

    Returns:
        Variable of no axes, float32 where ``x`` is float16 and else of its dtype.

    Raises:
        ModelError: A label is no class.

    Source: softmax_loss_layer.cpp.
    """
    shape = _shape(x, layer.axis)
    wanted, valid = counted_labels(labels, shape[1], layer, layer.ignore_label)
    counted = None if valid == wanted.size else wanted >= 0
    return _SoftmaxLoss(shape, wanted, counted, layer.divisor(shape[0], shape[2], valid)).apply((x,))[0]


class _SoftmaxLoss(Node):
    """The sum over places, divided; as float32 where they are float16, whose range it may exceed.

    Args:
        shape: Of the input, taken as (outer, classes, inner).
        wanted: The label of each place, (outer * inner).
        counted: Whether the place counts; ``None`` where all do.
        divisor: What to divide by.
    """

    def __init__(self, shape: Shape, wanted: Any, counted: Any, divisor: int) -> None:
        self.shape, self.wanted, self.counted, self.divisor = shape, wanted, counted, divisor

    def forward(self, inputs: tuple[Any]) -> tuple[Any]:
        """The loss, of no axes."""
        self.retain_inputs((0,))
        xp = chainer.backend.get_array_module(*inputs)
        x = xp.ascontiguousarray(inputs[0]).reshape(self.shape)
        self.softmax = _normalised(xp, x.astype(np.float32) if x.dtype == np.float16 else x)
        self.places = self._places(xp)
        logs = xp.log(xp.maximum(self.softmax.reshape(-1)[self.places], _SMALLEST))
        if self.counted is not None:
            logs *= self.counted
        total = xp.add.accumulate(logs)[-1] if xp is np and len(logs) else logs.sum()  # one after the other, as Caffe
        return (xp.asarray(-total / self.divisor, dtype=logs.dtype),)

    def _places(self, xp: Any) -> Any:
        """Where the wanted classes are in the flat input."""
        outer, classes, inner = self.shape
        wanted = self.wanted if self.counted is None else xp.maximum(self.wanted, 0)
        if inner == 1:
            return xp.arange(outer) * classes + wanted
        first = xp.arange(outer)[:, None] * (classes * inner) + xp.arange(inner)
        return first.reshape(-1) + wanted * inner

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> tuple[Any]:
        """The gradient of the places, which does not see the softmax's bound, as in Caffe."""
        (x,), (gy,) = self.get_retained_inputs(), grad_outputs
        outer, _, inner = self.shape
        counted = None if self.counted is None else self.counted.reshape(outer, 1, inner)
        if chainer.config.enable_backprop:  # for a second derivative
            right = gy.xp.zeros_like(self.softmax)
            right.reshape(-1)[self.places] = 1
            wide = F.reshape(F.cast(x, right.dtype), self.shape)
            each = F.softmax(wide, axis=1) - right
            kept = each if counted is None else each * counted.astype(each.dtype)
            made = kept * F.broadcast_to(gy / self.divisor, kept.shape)
            return (F.cast(F.reshape(made, x.shape), x.dtype),)
        gx = self.softmax.copy()
        gx.reshape(-1)[self.places] -= 1
        if counted is not None:
            gx *= counted
        gx *= gy.array / self.divisor
        return (chainer.as_variable(gx.reshape(x.shape).astype(x.dtype, copy=False)),)


def _normalised(xp: Any, x: Any) -> Any:
    """The softmax of ``x`` (outer, classes, inner), C-contiguous, over the classes.

    On the CPU, and of float32, Caffe's bits: the classes' exponentials are added up in fours
    where there is one place, and else as OpenBLAS adds columns.
    """
    if xp is not np or x.dtype != np.float32:
        made = xp.exp(x - x.max(axis=1, keepdims=True))
        made /= made.sum(axis=1, keepdims=True)
        return made
    if x.shape[2] > 1:
        made = expf(x - x.max(axis=1, keepdims=True))
        made /= np.matmul(made.swapaxes(1, 2), np.ones(x.shape[1], x.dtype))[:, None]
        return made
    x = x[:, :, 0]
    made = expf(x - np.maximum.reduce(x, axis=1, keepdims=True))
    made /= _sums_by_fours(made)
    return made[:, :, None]


def _sums_by_fours(rows: np.ndarray) -> np.ndarray:
    """The sum of each row, (rows, 1): each four values are added up first. Source: OpenBLAS ``sgemv_n_4.c``."""
    stop = rows.shape[1] & -4
    fours = rows[:, 0:stop:4] + rows[:, 1:stop:4]
    fours += rows[:, 2:stop:4]
    fours += rows[:, 3:stop:4]
    sums: np.ndarray = np.add.accumulate(np.concatenate([fours, rows[:, stop:]], axis=1), axis=1)
    return sums[:, -1:]
