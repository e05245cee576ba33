"""Parameters whose values stay in the file until they are used."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.schema import Blob


class StoredArrays:
    """Hands out the blobs of a file as arrays that can be written, without reading the file.

    A blob that lies in the file as unbroken float32 becomes a view into a private mapping of
    the file: a page is read when it is first used and copied when it is first written, and the
    file itself never changes. Any other blob is converted and copied at once.
    """

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}
        self._arrays: dict[int, _Lazy] = {}
        self._blobs: list[Blob] = []

    def parameter(self, blob: Blob, shape: Sequence[int] | None = None) -> Any:
        """A parameter with a blob's values; parameters of one shared blob have the same memory.

        Args:
            blob: The blob.
            shape: Its shape, where it is not the blob's own.

        Returns:
            A ``chainer.Parameter``, float32.
        """
        wanted = tuple(blob.shape if shape is None else shape)
        known = self._arrays.get(id(blob.origin))
        if known is not None and known.shape == wanted:
            array = known
        elif known is not None:
            array = _Lazy([known[0].reshape(wanted)], wanted)
        else:
            array = self._arrays[id(blob.origin)] = _Lazy([self.array(blob).reshape(wanted)], wanted)
            self._blobs.append(blob.origin)  # its id must stay its own
        param = chainer.Parameter(list.__getitem__(array, 0))
        param._data = array
        return param

    def array(self, blob: Blob) -> np.ndarray:
        """A blob's values as a float32 array that can be written; perhaps not aligned."""
        place = blob.location
        if place is None or blob.dtype != np.float32:
            with np.errstate(all="ignore"):  # float64 of a file may be more than float32 can hold
                return np.array(blob.numpy(), dtype=np.float32, order="C")
        if place.path not in self._maps:
            with open(place.path, "rb") as file:
                self._maps[place.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        values = np.frombuffer(self._maps[place.path], np.float32, blob.size, place.offset)
        return values.reshape(blob.shape)


class _Lazy(list[Any]):
    """What a variable keeps its array in: one that is not aligned is copied when it is first asked for.

    Values begin at any byte of a caffemodel. Matrix products of arrays that are not aligned would
    copy them every time.
    """

    def __init__(self, arrays: list[np.ndarray], shape: tuple[int, ...]) -> None:
        super().__init__(arrays)
        self.shape = shape

    def __getitem__(self, index: Any) -> Any:
        array = super().__getitem__(index)
        if isinstance(array, np.ndarray) and not array.flags.aligned:
            array = np.array(array)
            self[index] = array
        return array
