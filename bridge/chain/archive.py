"""Chainer's NumPy archive: what ``chainer.serializers.save_npz`` writes of the built chain.

``chainer.serializers.load_npz`` fills the chain of :func:`bridge.build_chain` from it.
The texts of :mod:`bridge.files.manifest` are added, which Chainer passes over, so that the file
is a whole model and reads back like the other formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

from bridge.chain.build import build_chain
from bridge.chain.functions import chainer
from bridge.files.manifest import Entry, describe
from bridge.files.writers.npz import archive
from bridge.schema import Blob, Net


def write(net: Net, stream: IO[bytes]) -> None:
    """Write Chainer's ``.npz``, uncompressed; arrays are float32, as in the chain.

    Args:
        net: The net.
        stream: Where to; need not be seekable.

    Raises:
        MissingExtraError: Chainer is not installed.
        UnsupportedLayerError: Layers that Chainer cannot run; names all of them.

    Source: ``chainer.serializers.save_npz``.
    """
    chain = build_chain(net)
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(chain)
    listed = list(_entries(net, chain, {id(array): key for key, array in serializer.target.items()}))
    archive(stream, {key: Blob.of(array) for key, array in serializer.target.items()}, describe(net, listed))


def _entries(net: Net, chain: Any, keys: Mapping[int, str]) -> Iterator[Entry]:
    for index, layer in enumerate(net.layers):
        for role in chain.roles(index):
            found = chain.array(index, role)
            array = getattr(found, "array", found)
            blob = Blob.of(array).reshaped(chain.shape(index, role))  # layers may share it under several shapes
            yield Entry(index, layer.name, role, keys[id(array)], blob)
