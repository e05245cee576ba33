"""Caffe's losses as differentiable functions, and its accuracy.

The gradients are those of Caffe's backward pass; where that is not the derivative of the
forward pass, the difference is noted. Source: the ``*_loss_layer.cpp`` of each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.schema import count

if TYPE_CHECKING:
    from bridge.layers.accuracy import Accuracy
    from bridge.layers.contrastive_loss import ContrastiveLoss
    from bridge.layers.infogain_loss import InfogainLoss
    from bridge.layers.loss import Loss
    from bridge.layers.sigmoid_cross_entropy_loss import SigmoidCrossEntropyLoss

F = chainer.functions
_SMALLEST = 1e-20
_NONE = -1


def infogain_loss(x: Any, labels: Any, matrix: Any, layer: InfogainLoss) -> Any:
    """``-sum_k H[label, k] log softmax(x)[k]``, the softmax at least 1e-20, over the places that count."""
    places, outer, inner = by_place(x, layer.axis)
    wanted, valid = counted_labels(labels, places.shape[1], layer, layer.ignore_label)
    weights = matrix.array.reshape(places.shape[1], -1)[wanted] * (wanted != _NONE)[:, None]
    logs = F.log_softmax(places)
    held = _held(logs, logs.array.clip(math.log(_SMALLEST), None))
    return -F.sum(weights * held) / layer.divisor(outer, inner, valid)


def sigmoid_cross_entropy_loss(x: Any, targets: Any, layer: SigmoidCrossEntropyLoss) -> Any:
    """``log(1 + exp(x)) - t x`` over the places that count."""
    xp = _array_module(x)
    wanted = targets.array.reshape(x.shape)
    counted = _counted(wanted.astype("i"), layer.ignore_label)
    values = xp.maximum(x.array, 0) - x.array * wanted + xp.log1p(xp.exp(-abs(x.array)))
    each = _held(x * (F.sigmoid(x).array - wanted), values) * counted
    return F.sum(each) / layer.divisor(len(x), x.size // max(1, len(x)), int(counted.sum()))


def margins(x: Any, labels: Any, layer: Loss) -> Any:
    """``max(0, 1 - s x)``, s being 1 for the sample's class and -1 for others."""
    flat = F.reshape(x, (len(x), -1))
    wanted, _ = counted_labels(labels, flat.shape[1], layer, None)
    signs = _array_module(x).ones_like(flat.array)
    signs[_array_module(x).arange(len(x)), wanted] = -1
    return F.relu(1 + signs * flat)


def log_loss(x: Any, labels: Any, layer: Loss) -> Any:
    """The mean of ``-log x[label]``, x at least 1e-20."""
    flat = F.reshape(x, (len(x), -1))
    wanted, _ = counted_labels(labels, flat.shape[1], layer, None)
    picked = F.select_item(flat, wanted)
    return -F.sum(F.log(_held(picked, picked.array.clip(_SMALLEST, None)))) / len(x)


def contrastive_loss(a: Any, b: Any, alike: Any, layer: ContrastiveLoss) -> Any:
    """Squared distances of pairs that are alike, and what others lack to the margin, over 2N."""
    xp = _array_module(a)
    difference = F.reshape(a, (len(a), -1)) - F.reshape(b, (len(b), -1))
    squared = F.sum(F.square(difference), axis=1)
    if layer.legacy_version:
        unlike = F.relu(layer.margin - squared)
    else:  # Caffe's gradient has d + 1e-4 where the derivative has d
        distance = xp.sqrt(squared.array)
        lack = xp.maximum(layer.margin - distance, 0)
        unlike = lack * lack - lack / (distance + 1e-4) * (squared - squared.array)
    return F.sum(F.where(alike.array.reshape(-1).astype("i") != 0, squared, unlike)) / (2 * len(a))


def caffe_accuracy(x: Any, labels: Any, layer: Accuracy) -> tuple[Any, ...]:
    """The part of the places that are right, and, where the layer has a second top, that part per class."""
    xp = _array_module(x)
    places, _, _ = by_place(x, layer.axis)
    wanted, valid = counted_labels(labels, places.shape[1], layer, layer.ignore_label)
    values, counted = places.array, wanted != _NONE
    own = values[xp.arange(len(values)), wanted]
    right = counted & ((values >= own[:, None]).sum(axis=1) - 1 < layer.top_k)
    total = chainer.as_variable(xp.asarray(right.sum() / max(1, valid), dtype=x.dtype))
    if len(layer.tops) < 2:
        return (total,)
    of_class = wanted[:, None] == xp.arange(values.shape[1])
    numbers = of_class.sum(axis=0)
    shares = (of_class & right[:, None]).sum(axis=0) / xp.maximum(numbers, 1)
    return total, chainer.as_variable(shares.astype(x.dtype))


def by_place(x: Any, axis: int) -> tuple[Any, int, int]:
    """``x`` as (places, classes), and the extents before and behind the classes that the places are of."""
    axis %= x.ndim
    outer, inner = count(x.shape[:axis]), count(x.shape[axis + 1 :])
    if inner == 1:
        return F.reshape(x, (outer, x.shape[axis])), outer, inner
    moved = F.transpose(F.reshape(x, (outer, x.shape[axis], inner)), (0, 2, 1))
    return F.reshape(moved, (outer * inner, x.shape[axis])), outer, inner


def counted_labels(labels: Any, classes: int, layer: Any, ignore: int | None) -> tuple[Any, int]:
    """The labels as int32, ignored ones as -1, and the number of the others.

    Raises:
        ModelError: A label is no class.
    """
    wanted = labels.array.reshape(-1).astype("i")
    odd = wanted.view("u4") >= classes  # negative ones are large then
    if ignore is not None:
        counted = wanted != ignore
        odd &= counted
    if odd.any():
        raise ModelError(f"label {int(wanted[odd][0])} is none of the {classes} classes", subject=layer.label)
    if ignore is None:
        return wanted, wanted.size
    wanted[~counted] = _NONE
    return wanted, int(counted.sum())


def _counted(labels: Any, ignore: int | None) -> Any:
    """Which labels are not the one to ignore."""
    return _array_module(labels).ones(labels.shape, bool) if ignore is None else labels != ignore


def _held(x: Any, values: Any) -> Any:
    """``values`` with the gradient of ``x``: a bound that Caffe's backward pass does not see."""
    return x + (values - x.array)


def _array_module(x: Any) -> Any:
    return chainer.backend.get_array_module(x)
