"""Chainer's NumPy archive, as ``chainer.serializers.save_npz`` writes it for the chain of a net.

``chainer.serializers.load_npz`` reads it into the chain of :func:`bridge.build_chain`.
The file also holds the texts of :mod:`bridge.files.manifest`, which Chainer ignores. With them it is a
whole model, which this project reads back like the other formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

from bridge.chain.build import build_chain
from bridge.chain.functions import chainer
from bridge.files.manifest import StoredArray, manifest_texts
from bridge.files.writers.npz import archive
from bridge.schema import Blob, Net


def write(net: Net, stream: IO[bytes]) -> None:
    """Write Chainer's ``.npz``, uncompressed; arrays are float32, as in the chain.

    Args:
        net: The net.
        stream: Receives the file; need not be seekable.

    Raises:
        MissingExtraError: Chainer is not installed.
        UnsupportedLayerError: Chainer cannot run some layers; the message names all of them.

    Source: ``chainer.serializers.save_npz``.
    """
    chain = build_chain(net)
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(chain)
    listed = list(_entries(net, chain, {id(array): key for key, array in serializer.target.items()}))
    archive(stream, {key: Blob.of(array) for key, array in serializer.target.items()}, manifest_texts(net, listed))


def _entries(net: Net, chain: Any, keys: Mapping[int, str]) -> Iterator[StoredArray]:
    """The manifest's entry for each blob; ``keys`` gives the name in the archive by the identity of the array."""
    for index, layer in enumerate(net.layers):
        for role in chain.roles(index):
            stored = chain.array(index, role)
            array = getattr(stored, "array", stored)  # a parameter or a statistic
            blob = Blob.of(array).reshaped(chain.shape(index, role))  # layers that share it may have different shapes
            yield StoredArray(index, layer.name, role, keys[id(array)], blob)
