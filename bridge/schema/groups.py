"""Array algebra of grouped weights: block-diagonal to dense, and back."""

from __future__ import annotations

import numpy as np

from bridge.errors import ModelError
from bridge.schema.blob import Shape


def spread_groups(weight: np.ndarray, group: int) -> np.ndarray:
    """A grouped weight as the dense one that computes the same: block-diagonal, zero elsewhere.

    Args:
        weight: (O, I / group, ...) of a convolution, or (I, O / group, ...) of a deconvolution.
        group: Number of groups.

    Returns:
        (O, I, ...), or (I, O, ...), of the same dtype; ``weight`` itself for one group.

    Raises:
        ModelError: The first axis does not divide into the groups.

    Source: base_conv_layer.cpp ``forward_cpu_gemm``.
    """
    if group == 1:
        return weight
    dense = np.zeros(dense_shape(weight.shape, group), weight.dtype)
    each = np.arange(group)
    _blocks(dense, group)[each, :, each] = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    return dense


def unspread_groups(dense: np.ndarray, group: int) -> np.ndarray:
    """The grouped weight in a block-diagonal dense one; the inverse of :func:`spread_groups`.

    Args:
        dense: (O, I, ...), or (I, O, ...) of a deconvolution.
        group: Number of groups.

    Returns:
        (O, I / group, ...), or (I, O / group, ...), a copy; ``dense`` itself for one group.

    Raises:
        ModelError: The axes do not divide into the groups, or a value outside the blocks is
            not zero (-0.0 is zero, NaN is not): the weight is not one of that many groups.

    Source: base_conv_layer.cpp ``forward_cpu_gemm``.
    """
    if group == 1:
        return dense
    _check_groups(dense.shape[:2], group)
    each = np.arange(group)
    diagonal = _blocks(dense, group)[each, :, each]
    if np.count_nonzero(dense) != np.count_nonzero(diagonal):
        raise ModelError(_stray(dense, group))
    weight: np.ndarray = diagonal.reshape(dense.shape[0], dense.shape[1] // group, *dense.shape[2:])
    return weight


def _blocks(dense: np.ndarray, group: int) -> np.ndarray:
    """A view (group, rows, group, columns, ...) of a dense weight."""
    rows, columns = dense.shape[0] // group, dense.shape[1] // group
    return dense.reshape(group, rows, group, columns, *dense.shape[2:])


def dense_shape(shape: Shape, group: int) -> Shape:
    """The shape of the dense form of a grouped weight of the given shape.

    Raises:
        ModelError: The first axis does not divide into the groups.
    """
    _check_groups(shape[:1], group)
    return (shape[0], shape[1] * group, *shape[2:])


def _check_groups(channels: Shape, group: int) -> None:
    for extent in channels:
        if group < 1 or extent % group:
            raise ModelError(f"{extent} channels do not divide into {group} groups")


def _stray(dense: np.ndarray, group: int) -> str:
    """Where the first value outside the blocks is that is not zero."""
    outside = dense != 0
    each = np.arange(group)
    _blocks(outside, group)[each, :, each] = False
    index = tuple(int(i) for i in np.argwhere(outside)[0])
    return f"value {dense[index]} at {list(index)} lies outside the {group} blocks, expected 0"
