"""Where a net is cut: the frozen trunk below, and the layers that are trained above."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bridge.errors import BridgeError
from bridge.schema import Layer, Net


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


def _unsteady(layer: Layer, frozen: set[str]) -> bool:
    """Whether the layer's result in training is random or depends on the rest of the batch."""
    return layer.draws_random or (layer.uses_batch and layer.name not in frozen)


def _handed_on(net: Net, index: int) -> tuple[str, ...]:
    """The blobs that layers before ``index`` compute and later ones read."""
    read = dict.fromkeys(value for values in net.flow.reads[index:] for value in values)
    computed = [value for value in read if 0 <= value.layer < index and not net.layers[value.layer].is_input]
    return tuple(map(net.flow.name, computed))


def _imagewise(net: Net, index: int, data: str, blobs: Sequence[str]) -> bool:
    """Whether the trunk reads nothing but images, and gives a row per image."""
    prefix, shape = trunk_net(net, index), net.inputs[data]
    if set(prefix.inputs) != {data} or shape is None:
        return False
    try:
        shapes = [prefix.flow.final_shapes({data: (size, *shape[1:])}) for size in (1, 3)]
        return all(made[blob][0] == size for made, size in zip(shapes, (1, 3), strict=True) for blob in blobs)
    except (BridgeError, IndexError):
        return False


def trunk_net(net: Net, index: int) -> Net:
    """The layers before ``index`` as a net, without the inputs that they do not read."""
    read = {value.layer for values in net.flow.reads[:index] for value in values}
    kept = [layer for place, layer in enumerate(net.layers[:index]) if not layer.is_input or place in read]
    return net.replace(layers=tuple(kept))
