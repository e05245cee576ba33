"""A blob as an initializer of Chainer, in the shape that Chainer asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.errors import ModelError, NotFoundError
from bridge.schema.blob import Shape, count, times
from bridge.schema.groups import dense_shape, spread_groups
from bridge.schema.layer import Layer


class Initializer:
    """A blob as an initializer of Chainer: ``L.Convolution2D(..., initialW=Initializer(layer, "weight"))``.

    Calling it with an array, NumPy's or CuPy's, fills that array, cast to its dtype. The
    array has one of these shapes:

    * the blob's own; for the weight of an InnerProduct that is stored transposed also
      (num_output, K), which goes first where both are the same;
    * that of a grouped weight's dense form, which is zero between the groups;
    * one of these with axes of extent one added or dropped;
    * (N, C, H, W) for the weight (N, C * H * W) of an InnerProduct, and the other way round
      for a Convolution's.

    Args:
        layer: The layer.
        role: Which of its blobs.

    Raises:
        NotFoundError: The layer has no blob of that role.

    Source: chainer.initializer.Initializer.
    """

    dtype = None
    """Chainer's sign that the initializer takes an array of any dtype."""

    def __init__(self, layer: Layer, role: str) -> None:
        if role not in layer.blobs:
            known = ", ".join(layer.blobs) or "none"
            raise NotFoundError(f"no blob '{role}' (blobs: {known})", subject=layer.label, hint=layer.uncovered)
        weight = role == "weight"
        self.values = layer.blobs[role]
        self.where = f"{layer.label}: blob '{role}'"
        self.group = layer.group if weight else 1
        self.flat = weight and layer.flat_weight
        self.transposed = weight and layer.weight_transposed

    def __call__(self, array: Any) -> None:
        """Fill ``array``.

        Raises:
            ModelError: The blob does not fit the array's shape.
        """
        values = self.shaped(tuple(array.shape)).astype(array.dtype, copy=False)
        if isinstance(array, np.ndarray):
            array[...] = values
        else:  # CuPy assigns no NumPy array of more than one value
            array.set(values)

    def shaped(self, shape: Shape) -> np.ndarray:
        """The blob's values in ``shape``.

        Raises:
            ModelError: They do not fit.
        """
        own = self.values.T if self.transposed else self.values
        if _fits(own.shape, shape, self.flat and self.group == 1):
            return own.reshape(shape)
        if self.group > 1 and _fits(dense_shape(own.shape, self.group), shape, self.flat):
            return spread_groups(own, self.group).reshape(shape)
        if self.values.shape == shape:
            return self.values
        raise ModelError(
            f"{times(own.shape)} does not fit {times(shape)}",
            where=self.where,
            hint="leave the blob out where the layer is a new one, such as a head with other classes",
        )


def _fits(have: Shape, want: Shape, flat: bool) -> bool:
    """Whether the values, in the order they have, are those of the other shape.

    Args:
        have: The shape there is.
        want: The shape there is to be.
        flat: Whether all axes but the first may be taken as one.
    """
    if len(have) == len(want):
        return have == want
    if [extent for extent in have if extent != 1] == [extent for extent in want if extent != 1]:
        return True
    return flat and min(len(have), len(want)) == 2 and have[0] == want[0] and count(have) == count(want)
