"""Helper: what the losses and the accuracy share.

The gradients of the losses are those of Caffe's backward pass. Where that is not the derivative of the
forward pass, a comment says so.

Source: loss_layer.cpp and the ``*_loss_layer.cpp`` of each loss.
"""

from __future__ import annotations

from typing import Any

from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.schema import Layer, count

F = chainer.functions
SMALLEST = 1e-20
"""The least probability that a loss takes the logarithm of. Source: ``kLOG_THRESHOLD`` in loss_layer.hpp."""
IGNORED = -1
"""What :func:`read_labels` returns for a label to ignore."""


def flatten_places(x: Any, axis: int) -> tuple[Any, int, int]:
    """Reshape predictions to one row per place.

    For example, ``x`` of shape (2, 3, 4, 5) with ``axis`` 1 gives (40, 3), 2 and 20.

    Args:
        x: Variable (axes..., classes, axes...).
        axis: The axis of the classes.

    Returns:
        Variable (places, classes), the product of the extents before ``axis``, and the product of those after it.
    """
    axis %= x.ndim
    outer, inner = count(x.shape[:axis]), count(x.shape[axis + 1 :])
    if inner == 1:
        return F.reshape(x, (outer, x.shape[axis])), outer, inner
    moved = F.transpose(F.reshape(x, (outer, x.shape[axis], inner)), (0, 2, 1))
    return F.reshape(moved, (outer * inner, x.shape[axis])), outer, inner


def read_labels(labels: Any, classes: int, layer: Layer, ignore: int | None) -> tuple[Any, int]:
    """Check labels and bring them to one form.

    Args:
        labels: Variable of any shape, with labels as numbers.
        classes: Number of classes.
        layer: The layer, for the error.
        ignore: The label to ignore; ``None`` if there is none.

    Returns:
        The labels as int32 (places), :data:`IGNORED` for those to ignore, and the number of the others.

    Raises:
        ModelError: A label is negative or not below ``classes``, and is not the one to ignore.
    """
    target = labels.array.reshape(-1).astype("i")
    invalid = target.view("u4") >= classes  # as unsigned numbers, negative ones are large
    if ignore is not None:
        counted = target != ignore
        invalid &= counted
    if invalid.any():
        raise ModelError(
            f"label {int(target[invalid][0])} is none of the {classes} classes (0 to {classes - 1})",
            subject=layer.label,
        )
    if ignore is None:
        return target, target.size
    target[~counted] = IGNORED
    return target, int(counted.sum())


def with_gradient_of(x: Any, values: Any) -> Any:
    """``values`` with the gradient of ``x``, where Caffe's backward pass ignores what the forward pass did to ``x``.

    Args:
        x: Variable.
        values: Array of the shape and dtype of ``x``.

    Returns:
        Variable of the same shape and dtype.
    """
    return x + (values - x.array)
