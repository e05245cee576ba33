"""Pieces of a net that can be run on given inputs: single layers, and runs of them.

In a piece every value has a name of its own, so that layers which work in place show
what they read and what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge import engines
from bridge.schema import Layer, Net, ServedNet
from bridge.schema.flow import BlobValue

Place = BlobValue
"""A value of a net; inputs are (-1, n), n in the order of the net's."""


def sources(net: Net) -> list[tuple[Place, ...]]:
    """For each layer, where each of its bottoms was written."""
    return net.flow.fed_reads()


@dataclass(frozen=True)
class Segment:
    """Layers of a net that lead from known values to the tops of the last of them.

    Attributes:
        layers: Indices of the layers, in order.
        inputs: The known values that they read.
    """

    layers: tuple[int, ...]
    inputs: tuple[Place, ...]


def segment(target: int, reads: Sequence[Sequence[Place]], known: Callable[[Place], bool]) -> Segment:
    """The fewest layers that compute a layer's tops from known values.

    Args:
        target: Index of the layer.
        reads: From :func:`sources`.
        known: Tells whether a value is known; inputs of the net must be.
    """
    layers: set[int] = set()
    inputs: dict[Place, None] = {}
    stack = [target]
    while stack:
        index = stack.pop()
        if index in layers:
            continue
        layers.add(index)
        for place in reads[index]:
            if known(place) or place[0] < 0:
                inputs[place] = None
            else:
                stack.append(place[0])
    return Segment(tuple(sorted(layers)), tuple(inputs))


def name_of(place: Place) -> str:
    """The name of a value in a piece."""
    return f"v{place[0]}.{place[1]}".replace("-1", "in")


def piece(
    net: Net, part: Segment, reads: Sequence[Sequence[Place]], change: Callable[[Layer], Layer] | None = None
) -> ServedNet:
    """The layers of a segment as a net of their own.

    Args:
        net: The whole net.
        part: Which of its layers.
        reads: From :func:`sources`.
        change: Applied to each layer.
    """
    layers = []
    for index in part.layers:
        layer = net.layers[index]
        bottoms = tuple(name_of(place) for place in reads[index])
        tops = tuple(name_of(Place(index, top)) for top in range(len(layer.tops)))
        layers.append((change(layer) if change else layer).changed(bottoms=bottoms, tops=tops))
    return ServedNet(name=net.name, layers=tuple(layers), phase=net.phase, sources=net.sources)


class Runner:
    """Runs pieces of one net in one engine.

    Args:
        net: The net.
        engine: Name of the engine.
        options: For the engine.
    """

    def __init__(self, net: Net, engine: str, options: Mapping[str, Any]) -> None:
        self.net, self.engine, self.options = net, engine, options
        self.reads = sources(net)

    def run(
        self,
        part: Segment,
        values: Mapping[Place, np.ndarray],
        change: Callable[[Layer], Layer] | None = None,
    ) -> dict[Place, np.ndarray]:
        """Every top that the segment's layers write, from the values of its inputs."""
        net = piece(self.net, part, self.reads, change)
        fed = {name_of(place): values[place] for place in part.inputs}
        net.infer({name: array.shape for name, array in fed.items()})
        tops = engines.make(self.engine, net, **self.options).tops(fed)
        return {
            Place(index, top): array
            for index, arrays in zip(part.layers, tops, strict=True)
            for top, array in enumerate(arrays)
            if array is not None
        }

    def alone(self, index: int) -> Segment:
        """The segment that is one layer."""
        return Segment((index,), tuple(dict.fromkeys(self.reads[index])))
