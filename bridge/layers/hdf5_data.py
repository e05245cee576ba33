"""HDF5Data: blobs from HDF5 files."""

from __future__ import annotations

from bridge.layers.base import MANY, layer_type
from bridge.layers.data_source import DataSource


@layer_type("HDF5Data")
class HDF5Data(DataSource):
    """Each top is a batch from the data set of its name, in the files of a list. Their extents are in those files.

    Attributes:
        source: The list.
        batch_size: Samples per batch.
        shuffle: Whether samples are shuffled.

    Source: caffe.proto ``HDF5DataParameter``, hdf5_data_layer.cpp.
    """

    message = "hdf5_data_param"
    top_count = (1, MANY)

    source: str = ""
    batch_size: int = 0
    shuffle: bool = False
