"""SoftmaxWithLoss: the softmax and the cross entropy as one function.

On the CPU it has Caffe's bits: see :mod:`bridge.chain.functions.softmax`.

Source: softmax_loss_layer.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous, has_kernel
from bridge.chain.functions.helper_labels import read_labels
from bridge.chain.functions.helper_node import Node
from bridge.chain.functions.softmax import as_three_axes, normalized
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.softmax_with_loss import SoftmaxWithLoss

F = chainer.functions
_pick = Kernel(
    "softmax_loss",
    """extern "C" __global__ void softmax_loss(
    const float* softmax, const int* target, float* loss, int n, int classes, int inner, int ignore, float smallest) {
    EACH(i, n) {
        int label = target[i];
        long long first = i / inner * classes * inner + i % inner;
        if (label == ignore) loss[i] = 0;
        else if (label < 0 || label >= classes) loss[i] = nanf("");
        else {
            float p = softmax[first + (long long)label * inner];
            loss[i] = p == p ? -logf(MOST(p, smallest)) : p;
        }
    }
}""",
)
_gradient = Kernel(
    "softmax_loss_gradient",
    """extern "C" __global__ void softmax_loss_gradient(
    const float* softmax, const int* target, const float* gy, float* gx, int n, int classes, int inner, int ignore,
    float divisor) {
    EACH(i, n) {
        int k = i % inner, channel = i / inner % classes;
        int label = target[i / inner / classes * inner + k];
        gx[i] = label == ignore ? 0 : (softmax[i] - (label == channel ? 1 : 0)) * (gy[0] / divisor);
    }
}""",
)
_NONE_IGNORED = -(1 << 31)
_SMALLEST = np.finfo(np.float32).tiny


def caffe_softmax_with_loss(x: Any, labels: Any, layer: SoftmaxWithLoss) -> Any:
    """The sum of ``-log softmax(x)[label]`` over the places that are not ignored, divided as the layer says.

    Each place counts by its class's weight, if there are any; the divisor does not depend on these.
    The softmax is replaced by the smallest normal float32 where it is smaller.

    Args:
        x: Variable (axes..., classes at ``layer.axis``, axes...).
        labels: Variable with one label per place, as numbers of any dtype.
        layer: The layer's parameters.

    Returns:
        Variable of no axes; float32 where ``x`` is float16, otherwise of the dtype of ``x``.

    Raises:
        ModelError: A label is negative or not below the number of classes, and is not ``ignore_label``. On a GPU the
            loss is NaN instead, because to ask for the labels would wait for the device in every step.

    Source: softmax_loss_layer.cpp.
    """
    shape = as_three_axes(x, layer.axis)
    if x.xp is not np and x.dtype == np.float16:
        x = F.cast(x, np.float32)
    if has_kernel(x.array) and not layer.class_weights:
        target = labels.array.reshape(-1).astype(np.int32)
        ignored = layer.ignore_label
        valid = target.size if ignored is None else int((target != ignored).sum())
        divisor = layer.divisor(shape[0], shape[2], valid)
        return _DeviceLoss(shape, target, _NONE_IGNORED if ignored is None else ignored, divisor).apply((x,))[0]
    target, valid = read_labels(labels, shape[1], layer, layer.ignore_label)
    counted = None if valid == target.size else target >= 0
    if layer.class_weights:
        weights = chainer.backend.get_array_module(target).asarray(layer.class_weights, dtype=np.float32)
        counted = weights[target.clip(0)] * (target >= 0)
    return _SoftmaxLoss(shape, target, counted, layer.divisor(shape[0], shape[2], valid)).apply((x,))[0]


class _SoftmaxLoss(Node):
    """The loss as one function: a composition of Chainer's functions would cost more time than they compute.

    float16 input gives a float32 sum, because the sum may exceed the range of float16.

    Args:
        shape: Shape of the input as (outer, classes, inner).
        wanted: The label of each place, (outer * inner) int32; -1 where it is ignored.
        counted: How much each place counts, (outer * inner): bool, False if it is ignored, or float32 where classes
            have weights; ``None`` if each counts as one.
        divisor: The sum is divided by it.
    """

    def __init__(self, shape: Shape, target: Any, counted: Any, divisor: int) -> None:
        self.shape, self.target, self.counted, self.divisor = shape, target, counted, divisor

    def forward(self, inputs: tuple[Any]) -> tuple[Any]:
        """The loss, of no axes."""
        self.retain_inputs((0,))
        xp = chainer.backend.get_array_module(*inputs)
        x = xp.ascontiguousarray(inputs[0]).reshape(self.shape)
        self.softmax = normalized(xp, x.astype(np.float32) if x.dtype == np.float16 else x)
        self.places = self._places(xp)
        logs = xp.log(xp.maximum(self.softmax.reshape(-1)[self.places], _SMALLEST))
        if self.counted is not None:
            logs *= self.counted
        total = xp.add.accumulate(logs)[-1] if xp is np and len(logs) else logs.sum()  # in Caffe's order
        return (xp.asarray(-total / self.divisor, dtype=logs.dtype),)

    def _places(self, xp: Any) -> Any:
        """The indexes of the labels' classes in the flat input, (outer * inner)."""
        outer, classes, inner = self.shape
        target = self.target if self.counted is None else xp.maximum(self.target, 0)
        if inner == 1:
            return xp.arange(outer) * classes + target
        first = xp.arange(outer)[:, None] * (classes * inner) + xp.arange(inner)
        return first.reshape(-1) + target * inner

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> tuple[Any]:
        """The gradient of the input; as in Caffe, it ignores that the softmax has a least value."""
        (x,), (gy,) = self.get_retained_inputs(), grad_outputs
        outer, _, inner = self.shape
        counted = None if self.counted is None else self.counted.reshape(outer, 1, inner)
        if chainer.config.enable_backprop:  # for a second derivative
            right = gy.xp.zeros_like(self.softmax)
            right.reshape(-1)[self.places] = 1
            wide = F.reshape(F.cast(x, right.dtype), self.shape)
            each = F.softmax(wide, axis=1) - right
            kept = each if counted is None else each * counted.astype(each.dtype)
            gradient = kept * F.broadcast_to(gy / self.divisor, kept.shape)
            return (F.cast(F.reshape(gradient, x.shape), x.dtype),)
        gx = self.softmax.copy()
        gx.reshape(-1)[self.places] -= 1
        if counted is not None:
            gx *= counted
        gx *= gy.array / self.divisor
        return (chainer.as_variable(gx.reshape(x.shape).astype(x.dtype, copy=False)),)


class _DeviceLoss(chainer.FunctionNode):
    """The loss on a GPU, float32.

    Args:
        shape: Shape of the input as (outer, classes, inner).
        target: The label of each place, (outer * inner) int32.
        ignored: The label to ignore.
        divisor: The sum is divided by it.
    """

    def __init__(self, shape: Shape, target: Any, ignored: int, divisor: int) -> None:
        self.shape, self.target, self.ignored, self.divisor = shape, target, ignored, divisor

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        self.retain_inputs((0,))
        x, xp = contiguous(inputs[0])
        self.extents = x.shape
        self.softmax = xp.ascontiguousarray(normalized(xp, x.reshape(self.shape)))
        losses, (_, classes, inner) = xp.empty(self.target.shape, x.dtype), self.shape
        _pick(xp, losses.size, self.softmax, self.target, losses, losses.size, classes, inner, self.ignored, _SMALLEST)
        return (losses.sum() / np.float32(self.divisor),)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> tuple[Any]:
        if chainer.config.enable_backprop:  # for a second derivative
            return (self._differentiable(self.get_retained_inputs()[0], grad_outputs[0]),)
        gy, xp = contiguous(grad_outputs[0].array)
        gx = xp.empty(self.extents, gy.dtype)
        own = (self.softmax, self.target, gy, gx, gx.size, *self.shape[1:], self.ignored, float(self.divisor))
        _gradient(xp, gx.size, *own)
        return (chainer.as_variable(gx),)

    def _differentiable(self, x: Any, gy: Any) -> Any:
        """The gradient of the input by Chainer's functions."""
        outer, classes, inner = self.shape
        target = self.target.reshape(outer, 1, inner)
        right = (target == gy.xp.arange(classes)[:, None]).astype(x.dtype)
        each = (F.softmax(F.reshape(x, self.shape), axis=1) - right) * (target != self.ignored).astype(x.dtype)
        return F.reshape(each * F.broadcast_to(gy / self.divisor, each.shape), x.shape)
