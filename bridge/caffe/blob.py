"""Blob: an array and its gradient, as pycaffe shows them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.caffe.memory import Memory, ParamMemory
from bridge.errors import UsageError
from bridge.schema import Shape, count, times
from bridge.schema.blob import MOST, too_large


class Blob:
    """Values and their gradient, both float32, C-contiguous, and of one shape.

    Args:
        shape: Extent of each axis.
        data: The values' memory; zeros by default.
        diff: The gradient's memory; zeros by default.

    Source: blob.hpp, _caffe.cpp.
    """

    __slots__ = ("__weakref__", "_shape", "data_memory", "diff_memory")

    def __init__(self, shape: Sequence[int] = (), data: Memory | None = None, diff: Memory | None = None) -> None:
        self._shape: Shape = tuple(shape)
        self.data_memory = Memory(count(shape)) if data is None else data
        self.diff_memory = Memory(count(shape)) if diff is None else diff

    @property
    def data(self) -> np.ndarray:
        """The values: the blob's own memory, to read and to write in place."""
        return self.data_memory.expose(self._shape)

    @property
    def diff(self) -> np.ndarray:
        """The gradient: the blob's own memory, to read and to write in place."""
        return self.diff_memory.expose(self._shape)

    @property
    def shape(self) -> list[int]:
        """Extent of each axis."""
        return list(self._shape)

    @property
    def dims(self) -> Shape:
        """Extent of each axis, as a tuple."""
        return self._shape

    @property
    def count(self) -> int:
        """Number of values."""
        return count(self._shape)

    @property
    def num(self) -> int:
        """Extent of axis 0, 1 if there is none."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """Extent of axis 1, 1 if there is none."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """Extent of axis 2, 1 if there is none."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """Extent of axis 3, 1 if there is none."""
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        if len(self._shape) > 4:
            raise UsageError(
                f"a blob of {times(self._shape)} has no num, channels, height and width", hint="use its shape"
            )
        return self._shape[axis] if axis < len(self._shape) else 1

    def reshape(self, *shape: int, **keywords: Any) -> None:
        """Change the shape. The first values stay; if there is no room for all, everything is zero.

        Args:
            shape: Extent of each axis.
            keywords: None are allowed.

        Raises:
            UsageError: An extent is not a whole number of at least 0, or the blob would be too large.
        """
        if keywords:
            raise UsageError("Blob.reshape takes no keyword arguments")
        try:
            wanted = tuple(operator.index(extent) for extent in shape)
        except TypeError:
            raise UsageError(f"Blob.reshape{shape!r}: expected whole numbers, as in reshape(1, 3, 224, 224)") from None
        if min(wanted, default=0) < 0 or too_large(wanted):
            raise UsageError(f"a blob cannot be {times(wanted)}", hint=MOST)
        self.set_shape(wanted)

    def set_shape(self, shape: Shape) -> None:
        """:meth:`reshape` to a shape that is known to be one."""
        if shape == self._shape:
            return
        size = count(shape)
        if size > self.data_memory.size:  # cut off from whoever shared the memory, as in Caffe
            self.data_memory = type(self.data_memory)(size)
        if size > self.diff_memory.size:
            self.diff_memory = Memory(size)
        self._shape = shape

    def values(self) -> np.ndarray:
        """The values, for reading and writing here; nobody outside gets to see this array."""
        return self.data_memory.array()[: self.count].reshape(self._shape)

    def peek(self) -> np.ndarray:
        """The values, for reading only."""
        return self.data_memory.peek()[: self.count].reshape(self._shape)

    def gradient(self) -> np.ndarray:
        """The gradient, as :meth:`values`."""
        return self.diff_memory.array()[: self.count].reshape(self._shape)

    def share(self, other: Blob) -> None:
        """Have the memory of another blob from now on."""
        self.data_memory, self.diff_memory = other.data_memory, other.diff_memory

    def __repr__(self) -> str:
        return f"<Blob {times(self._shape)}>"


class BlobVec(list[Blob]):
    """A layer's parameters."""

    def add_blob(self, *shape: int, **keywords: Any) -> None:
        """Append a blob of zeros.

        Args:
            shape: Extent of each axis.
            keywords: None are allowed.
        """
        made = param_blob(())
        made.reshape(*shape, **keywords)
        self.append(made)


def param_blob(shape: Shape, make: Any = None) -> Blob:
    """A blob for a parameter.

    Args:
        shape: Extent of each axis.
        make: Gives the first values; zeros by default.
    """
    return Blob(shape, ParamMemory(count(shape), make))
