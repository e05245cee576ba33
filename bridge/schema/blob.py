"""Stored arrays: their shapes and types at once, their values when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge.errors import ModelError, NotFoundError
from bridge.limits.sources import Stamp

Shape = tuple[int, ...]

MOST_AXES, MOST_VALUES = 32, (1 << 31) - 1
"""A blob of more cannot be. Source: ``kMaxBlobAxes``, ``Blob::Reshape``."""
MOST = f"a blob has at most {MOST_AXES} axes and {MOST_VALUES:,} values"


class Location(NamedTuple):
    """Where the values of a blob lie, contiguous and little-endian, in a file; and what that file was then."""

    path: str
    offset: int
    nbytes: int
    stamp: Stamp | None = None


class Blob:
    """One stored array: its shape and dtype at once, its values when asked for.

    Args:
        shape: Extent of each axis, as stored.
        dtype: float32, float64 or float16, as stored (in host byte order).
        load: Returns the values, in any shape of the same count.
        location: Where the values lie in a file, if they lie there unbroken.

    Layers that share a parameter hold blobs of one ``origin``.
    """

    __slots__ = ("_array", "_load", "_origin", "dtype", "location", "shape")

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        load: Callable[[], np.ndarray],
        location: Location | None = None,
    ) -> None:
        self.shape: Shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.location = location
        self._origin: Blob | None = None  # not itself: a cycle would keep large values until they are collected
        self._load: Callable[[], np.ndarray] = load
        self._array: np.ndarray | None = None

    @classmethod
    def of(cls, array: Any) -> Blob:
        """A blob around values that are already in memory."""
        values = np.asarray(array)
        return cls(values.shape, values.dtype, lambda: values)

    @property
    def origin(self) -> Blob:
        """The blob that this one has its values of; itself, where it is no other's."""
        return self if self._origin is None else self._origin

    @origin.setter
    def origin(self, blob: Blob) -> None:
        self._origin = None if blob is self else blob

    @property
    def size(self) -> int:
        """Number of values."""
        return count(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as stored."""
        return self.size * int(self.dtype.itemsize)

    def numpy(self) -> np.ndarray:
        """The values as a read-only array of ``shape`` and ``dtype``; made once, then kept."""
        if self._array is None:
            view = np.asarray(self._load()).reshape(self.shape).view()
            view.flags.writeable = False
            self._array = view
        return self._array

    def reshaped(self, shape: Sequence[int]) -> Blob:
        """The same values in another shape of the same count."""
        if tuple(shape) == self.shape:
            return self
        if count(shape) != self.size:
            raise ModelError(f"{self.size} values do not fill shape {times(shape)}")
        twin = Blob(shape, self.dtype, self.numpy, self.location)
        twin.origin = self.origin
        return twin

    def __copy__(self) -> Blob:
        return self  # nothing about it can change

    def __deepcopy__(self, memo: object) -> Blob:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its values; blobs of one origin stay blobs of one origin."""
        return (Blob.of, (self.numpy(),)) if self.origin is self else (self.origin.reshaped, (self.shape,))

    def __repr__(self) -> str:
        return f"Blob({times(self.shape)}, {self.dtype})"


class Blobs(Mapping[str, np.ndarray]):
    """The blobs of a layer by role, in Caffe's order; values load when looked up."""

    __slots__ = ("_blobs",)

    def __init__(self, blobs: Mapping[str, Blob] | None = None) -> None:
        self._blobs: dict[str, Blob] = dict(blobs or {})

    def __getitem__(self, role: str) -> np.ndarray:
        return self.blob(role).numpy()

    def __contains__(self, role: object) -> bool:
        return role in self._blobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def blob(self, role: str) -> Blob:
        """The blob itself: shape and dtype without loading the values."""
        try:
            return self._blobs[role]
        except KeyError:
            known = ", ".join(self._blobs) or "none"
            raise NotFoundError(f"no blob '{role}' (blobs: {known})") from None

    def entries(self) -> list[tuple[str, Blob]]:
        """Role and blob of each, in Caffe's order."""
        return list(self._blobs.items())

    def __repr__(self) -> str:
        return f"Blobs({self._blobs!r})"


def count(shape: Sequence[int]) -> int:
    """Number of values in a shape, exact for any size."""
    total = 1
    for extent in shape:
        total *= int(extent)
    return total


def too_large(shape: Sequence[int]) -> bool:
    """Whether no blob can have that shape."""
    return len(shape) > MOST_AXES or max(count(shape), *shape, 0) > MOST_VALUES


def times(shape: Sequence[int]) -> str:
    """A shape for people: ``256 x 48 x 5 x 5``; ``scalar`` for no axes."""
    return " x ".join(map(str, shape)) or "scalar"
