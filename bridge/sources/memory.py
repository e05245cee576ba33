"""MemoryData: samples that the program hands over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from bridge.errors import UsageError
from bridge.layers.base import CaffeLayer
from bridge.layers.memory_data import MemoryData
from bridge.schema import Shape, times
from bridge.sources import BatchSource, Surroundings
from bridge.sources.transform import Transformer


class MemorySource(BatchSource):
    """A batch of the given samples after the other, over and over. Source: memory_data_layer.cpp."""

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.BatchSource.setup`."""
        self.layer = cast(MemoryData, layer)
        extents = self.layer.batch()
        if extents is None:
            raise self.layer.fail("batch_size, channels, height and width must be given")
        Transformer(self.layer, phase, around or Surroundings())  # draws a number, and does nothing to arrays
        self._shape: Shape = tuple(int(extent or 0) for extent in extents)
        self._data: np.ndarray | None = None
        self._labels = np.zeros(0, np.float32)
        self._at = 0

    def reset(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Take over samples, which are not copied.

        Args:
            data: float32 (samples, channels, height, width), C-contiguous.
            labels: float32, one for each sample.

        Raises:
            UsageError: They do not fit the layer.
        """
        size = self._shape[0]
        for name, array in (("data", data), ("labels", labels)):
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                raise UsageError(f"{name} is {array.dtype}", expected="float32 in C order", where=self.layer.label)
        if data.ndim != 4 or data.shape[1:] != self._shape[1:]:
            raise UsageError(
                f"data is {times(data.shape)}", expected=f"N x {times(self._shape[1:])}", where=self.layer.label
            )
        if len(data) == 0 or len(data) % size:
            raise UsageError(f"{len(data)} samples are no multiple of the batch size {size}", where=self.layer.label)
        if labels.size != len(data):
            raise UsageError(f"{labels.size} labels for {len(data)} samples", where=self.layer.label)
        self._data, self._labels, self._at = data, labels.reshape(-1), 0

    def shapes(self) -> Sequence[Shape]:
        """See :meth:`bridge.sources.BatchSource.shapes`. Labels have four axes once samples were handed over."""
        labels = self._shape[:1] if self._data is None else (self._shape[0], 1, 1, 1)
        return [self._shape, labels][: len(self.layer.tops)]

    def next_batch(self) -> Sequence[np.ndarray]:
        """See :meth:`bridge.sources.BatchSource.next_batch`.

        Raises:
            UsageError: No samples were handed over.
        """
        if self._data is None:
            hint = "net.set_input_arrays(data, labels)"
            raise UsageError("has no data yet", where=self.layer.label, hint=hint)
        part = slice(self._at, self._at + self._shape[0])
        self._at = part.stop % len(self._data)
        return [self._data[part].copy(), self._labels[part].reshape(-1, 1, 1, 1).copy()][: len(self.layer.tops)]
