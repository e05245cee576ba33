"""From a chain, after training, back to a net."""

from __future__ import annotations

import dataclasses

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.functions import chainer
from bridge.errors import UsageError
from bridge.schema import Blob, Blobs, Net


def from_chain(chain: NetChain, net: Net) -> Net:
    """The net with the chain's arrays as its blobs.

    A blob whose values training did not change stays the very blob that was read, so
    that a round trip is exact in whatever precision the file had.

    Args:
        chain: Made by :func:`~bridge.chain.build.build_chain`.
        net: The net it was made from, or one of the same layers.

    Raises:
        UsageError: The chain does not have the net's layers.
    """
    made: dict[int, Blob] = {}
    layers = []
    names = [layer.name for layer in net.layers]
    if not isinstance(chain, NetChain) or chain.layer_names() != names:
        raise UsageError("the chain was not built from this net", where=net.where)
    for index, layer in enumerate(net.layers):
        blobs = {}
        for role in chain.roles(index):
            array = chain.array(index, role)
            if id(array) not in made:
                made[id(array)] = _blob(array, layer.blobs.blob(role) if role in layer.blobs else None)
            blobs[role] = made[id(array)].reshaped(chain.shape(index, role))  # layers may share it under several shapes
        layers.append(dataclasses.replace(layer, blobs=Blobs(blobs)))
    return net.replace(layers=tuple(layers))


def _blob(array: object, stored: Blob | None) -> Blob:
    values = np.array(chainer.backends.cuda.to_cpu(getattr(array, "array", array)))
    if stored is not None and _same(stored.numpy().astype(np.float32), values):
        return stored
    return Blob.of(values)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()
