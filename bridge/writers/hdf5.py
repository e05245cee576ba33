"""Caffe's HDF5 weights, which the real Caffe loads: ``/data/LAYER/INDEX``."""

from __future__ import annotations

from typing import IO, Any

from bridge.errors import MissingExtraError, UnsupportedLayerError
from bridge.schema import Layer, Net


def write(net: Net, stream: IO[bytes]) -> None:
    """Write ``.caffemodel.h5``.

    As Caffe does, every layer gets a group, and a shared parameter is stored at the first
    layer that has it. A slash in a layer's name makes nested groups; Caffe itself can
    neither write nor load HDF5 weights of such layers.

    Args:
        net: The net.
        stream: Where to; seekable, and open for reading too.

    Raises:
        MissingExtraError: h5py is not installed.
        UnsupportedLayerError: Layers have names that HDF5 cannot hold.

    Source: Caffe's ``Net::ToHDF5``.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py is not installed", hint="pip install 'weight-bridge[hdf5]'") from None
    with h5py.File(stream, "w") as file:
        data = file.create_group("data")
        owned: set[int] = set()
        for layer in net.layers:
            group = _group(data, layer)
            for index, (_, blob) in enumerate(layer.blobs.entries()):
                if id(blob.origin) not in owned:
                    owned.add(id(blob.origin))
                    _store(group, layer, str(index), blob.numpy())


def _group(data: Any, layer: Layer) -> Any:
    parts = layer.name.split("/")
    if not all(parts) or "." in parts or "\0" in layer.name or hasattr(data.get(layer.name), "shape"):
        raise UnsupportedLayerError("HDF5 cannot hold a group of that name", where=layer.label)
    return data.require_group(layer.name)


def _store(group: Any, layer: Layer, index: str, values: Any) -> None:
    if index in group:
        raise UnsupportedLayerError("HDF5 cannot hold two layers of that name", where=layer.label)
    group.create_dataset(index, data=values)
