"""MemoryData: samples that the program has in memory."""

from __future__ import annotations

from bridge.layers.base import layer_type
from bridge.layers.data_source import DataSource
from bridge.schema.hooks import PartialShape


@layer_type("MemoryData")
class MemoryData(DataSource):
    """Batches of samples and labels that the caller handed over.

    Attributes:
        batch_size, channels, height, width: The extents of a batch.

    Source: caffe.proto ``MemoryDataParameter``, memory_data_layer.cpp.
    """

    message = "memory_data_param"

    batch_size: int = 0
    channels: int = 0
    height: int = 0
    width: int = 0

    def batch(self) -> PartialShape | None:
        extents = (self.batch_size, self.channels, self.height, self.width)
        return extents if all(extents) else None
