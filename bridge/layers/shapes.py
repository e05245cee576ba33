"""Shapes as Caffe has them: axes from behind, one value for all axes, legacy four-axis blobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bridge.schema import Blob, Shape, times

if TYPE_CHECKING:
    from bridge.layers.base import CaffeLayer


def squeeze(blob: Blob, rank: int | None) -> Blob:
    """Bring a blob to ``rank`` axes by dropping axes of extent one, leading ones first.

    Caffe before 2015 wrote every blob with four axes: a bias is (1, 1, 1, N), the weight
    of an InnerProduct (1, 1, N, K). Source: ``Blob::FromProto``, ``Blob::ShapeEquals``.
    """
    shape = list(blob.shape)
    while rank is not None and len(shape) > rank and 1 in shape:
        if shape[0] == 1:
            shape.pop(0)
        else:
            shape.reverse()
            shape.remove(1)
            shape.reverse()
    return blob.reshaped(shape)


def canonical_axis(axis: int, rank: int, layer: CaffeLayer, what: str = "axis") -> int:
    """A possibly negative axis as 0..rank-1. Source: ``Blob::CanonicalAxisIndex``.

    Raises:
        ModelError: The axis is outside.
    """
    if not -rank <= axis < rank:
        raise layer.fail(f"{what} {axis} is outside the {rank} axes of the input")
    return axis % rank


def spread(values: Sequence[int], rank: int, default: int, layer: CaffeLayer, what: str) -> Shape:
    """One value per spatial axis from Caffe's none, one or ``rank`` values."""
    if len(values) in (0, 1):
        return tuple(values or (default,)) * rank
    if len(values) != rank:
        raise layer.fail(f"{what} has {len(values)} values", expected=f"1 or {rank}")
    return tuple(values)


def same_shapes(layer: CaffeLayer, bottoms: Iterable[Shape]) -> Shape:
    """The one shape of all bottoms.

    Raises:
        ModelError: They differ.
    """
    first, *rest = bottoms
    for index, other in enumerate(rest, 1):
        if other != first:
            raise layer.fail(f"bottom {index} is {times(other)}", expected=f"{times(first)} as bottom 0")
    return first
