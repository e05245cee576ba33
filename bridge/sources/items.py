"""Sources that give one image and label after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from bridge.errors import ModelError
from bridge.layers.base import CaffeLayer
from bridge.layers.data_source import DataSource
from bridge.schema import Shape, times
from bridge.sources import BatchSource, Surroundings, new_array
from bridge.sources.transform import Transformer

Item = tuple[np.ndarray, int]
"""An image (C, H, W), uint8 or float32, and its label."""


class ItemSource(BatchSource):
    """Batches of images and labels. The first image of a batch decides on the batch's extents.

    Source: base_data_layer.cpp.
    """

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.BatchSource.setup`."""
        around = around or Surroundings()
        self.layer = cast(DataSource, layer)
        self.batch_size = int(layer.attributes().get("batch_size", 0))
        if self.batch_size < 1:
            raise self.layer.fail("parameter 'batch_size'", found=f"{self.batch_size}", expected="at least 1")
        self.transformer = Transformer(self.layer, phase, around)
        self.open(around)
        self._ahead: Item | None = None
        self._begin(around)

    def _begin(self, around: Surroundings) -> None:
        """What Caffe does as the thread that reads ahead starts: it seeds twice more."""
        self.shapes()
        self.transformer.restart(around)
        around.random.draw()

    def open(self, around: Surroundings) -> None:
        """Open what is read."""
        raise NotImplementedError

    def item(self) -> Item:
        """The next image and label."""
        raise NotImplementedError

    def shapes(self) -> Sequence[Shape]:
        """See :meth:`bridge.sources.BatchSource.shapes`."""
        if self._ahead is None:
            self._ahead = self.item()
        shape = (self.batch_size, *self.transformer.infer(self._ahead[0].shape))
        return [shape, (self.batch_size,)][: len(self.layer.tops)]

    def next_batch(self) -> Sequence[np.ndarray]:
        """See :meth:`bridge.sources.BatchSource.next_batch`."""
        shape = self.shapes()[0]
        data, labels = new_array(shape), new_array((self.batch_size,))
        for place in range(self.batch_size):
            image, labels[place] = self._ahead or self.item()
            self._ahead = None
            values = self.transformer(image)
            if values.shape != shape[1:]:
                raise ModelError(
                    f"image {place} of a batch is {times(values.shape)}, the first one is {times(shape[1:])}",
                    where=self.layer.label,
                    hint="batch_size 1, a crop_size, or images of one size",
                )
            data[place] = values
        return [data, labels][: len(self.layer.tops)]
