"""Data: images from LMDB or LevelDB."""

from __future__ import annotations

from typing import Literal

from bridge.layers.base import layer_type
from bridge.layers.data_source import DataSource, square
from bridge.schema.hooks import PartialShape


@layer_type("Data", "AnnotatedData")
class Data(DataSource):
    """Batches of images and labels from a database. SSD's AnnotatedData gives boxes in place of labels.

    Attributes:
        source: The database.
        batch_size: Images per batch.
        backend: Kind of the database.
        rand_skip: At most so many images are skipped at the start.

    Source: caffe.proto ``DataParameter``, data_layer.cpp.
    """

    message = "data_param"

    source: str = ""
    batch_size: int = 0
    backend: Literal["LEVELDB", "LMDB"] = "LEVELDB"
    rand_skip: int = 0

    def batch(self) -> PartialShape | None:
        means = len(self.transform.mean_value)
        forced = 3 if self.transform.force_color else 1 if self.transform.force_gray else None
        return square(self.batch_size, forced or (means if means > 1 else None), self.transform.crop_size)
