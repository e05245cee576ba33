"""Where a net is cut: the frozen trunk below, and the layers that are trained above."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.errors import BridgeError
from bridge.schema import Net, Shape


@dataclass(frozen=True)
class Cut:
    """A place to cut a net.

    Attributes:
        index: The layers before this index are the trunk.
        blobs: The blobs of the trunk that later layers read.
    """

    index: int
    blobs: tuple[str, ...]


def find_cut(net: Net, data: str, trained: Iterable[str], frozen: Iterable[str]) -> Cut | None:
    """The cut below the first layer that is trained, random, or dependent on the batch.

    Args:
        net: The net to train.
        data: The input blob of images.
        trained: Names of layers with trained parameters.
        frozen: Names of layers whose running statistics are kept.

    Returns:
        The cut; ``None`` if no layer is below it, or if the trunk does not compute each image on its own.
    """
    moving, kept = set(trained), set(frozen)
    index = next(
        (i for i, layer in enumerate(net.layers) if layer.name in moving or _unsteady(layer, kept)), len(net.layers)
    )
    blobs = _handed_on(net, index)
    if not blobs or data in blobs or not _imagewise(net, index, data, blobs):
        return None
    return Cut(index, blobs)


def _unsteady(layer: Any, frozen: set[str]) -> bool:
    """Whether the layer's result in training is random or depends on the rest of the batch."""
    return is_random(layer) or (_uses_batch(layer) and layer.name not in frozen)


def is_random(layer: Any) -> bool:
    """Whether the layer draws random numbers in training."""
    if layer.type == "Dropout":
        return bool(layer.dropout_ratio > 0)
    return bool(layer.type == "Pooling" and layer.pool == "STOCHASTIC")


def _uses_batch(layer: Any) -> bool:
    """Whether the layer normalises by the batch's own statistics in training."""
    if layer.type == "BatchNorm":
        return bool(layer.use_global_stats is not True)
    return bool(layer.type == "BN" and not layer.frozen and layer.bn_mode != "INFERENCE")


def _handed_on(net: Net, index: int) -> tuple[str, ...]:
    """The blobs that layers before ``index`` compute and later ones read."""
    inputs = {top for layer in net.layers if hasattr(layer, "input_shapes") for top in layer.tops}
    written = {top for layer in net.layers[:index] for top in layer.tops}
    read: dict[str, None] = {}
    rewritten: set[str] = set()
    for layer in net.layers[index:]:
        read.update(dict.fromkeys(bottom for bottom in layer.bottoms if bottom not in rewritten))
        rewritten.update(layer.tops)
    computed = written - inputs
    return tuple(blob for blob in read if blob in computed) if computed else ()


def _imagewise(net: Net, index: int, data: str, blobs: Sequence[str]) -> bool:
    """Whether the trunk reads nothing but images, and gives a row per image."""
    prefix = trunk_net(net, index)
    if set(prefix.inputs) != {data}:
        return False
    try:
        counts = []
        for size in (1, 3):
            own = net.inputs[data]
            if own is None:
                return False
            shapes = final_shapes(prefix, {data: (size, *own[1:])})
            counts.append([shapes[blob][0] for blob in blobs])
    except (BridgeError, IndexError):
        return False
    return counts == [[1] * len(blobs), [3] * len(blobs)]


def final_shapes(net: Net, inputs: dict[str, Shape] | None = None) -> dict[str, Shape]:
    """The shape of each blob's last value."""
    made: dict[str, Shape] = {}
    for layer, tops in zip(net.layers, net.infer(inputs), strict=True):
        made.update(zip(layer.tops, tops, strict=False))
    return made


def trunk_net(net: Net, index: int) -> Net:
    """The layers before ``index`` as a net, without the inputs that they do not read."""
    layers = net.layers[:index]
    read = {bottom for layer in layers for bottom in layer.bottoms}
    kept = tuple(layer for layer in layers if not hasattr(layer, "input_shapes") or read.intersection(layer.tops))
    return net.replace(layers=kept)
