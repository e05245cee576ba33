"""Pieces of a net: some of its layers as a net of their own, and a net that is run in pieces.

In a piece every value has a name of its own, so that layers which work in place show
what they read and what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bridge.engines import Arrays, Engine, Tops
from bridge.engines.numpy import Engine as NumpyEngine
from bridge.schema import Layer, Net, ServedNet
from bridge.schema.flow import BlobValue

Place = BlobValue
"""A value of a net; inputs are (-1, n), n in the order of the net's."""


@dataclass(frozen=True)
class Segment:
    """Layers of a net that lead from known values to the tops of the last of them.

    Attributes:
        layers: Indices of the layers, in order.
        inputs: The known values that they read.
    """

    layers: tuple[int, ...]
    inputs: tuple[Place, ...]


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
        reads: For each layer, where each of its bottoms was written; inputs are (-1, n).
        change: Applied to each layer.
    """
    layers = []
    for index in part.layers:
        layer = net.layers[index]
        bottoms = tuple(name_of(place) for place in reads[index])
        tops = tuple(name_of(Place(index, top)) for top in range(len(layer.tops)))
        layers.append((change(layer) if change else layer).changed(bottoms=bottoms, tops=tops))
    return ServedNet(name=net.name, layers=tuple(layers), phase=net.phase, sources=net.sources)


def run_piece(
    make: Callable[[ServedNet], Engine], net: ServedNet, part: Segment, values: Mapping[Place, np.ndarray]
) -> dict[Place, np.ndarray]:
    """Every top that the layers of a piece write.

    Args:
        make: Makes an engine for a net.
        net: The piece, of :func:`piece`.
        part: Which layers it has.
        values: Of the segment's inputs.
    """
    fed = {name_of(place): values[place] for place in part.inputs}
    net.infer({name: array.shape for name, array in fed.items()})
    return {
        Place(index, top): array
        for index, arrays in zip(part.layers, make(net).tops(fed), strict=True)
        for top, array in enumerate(arrays)
        if array is not None
    }


class PartialEngine:
    """An engine for a net of which it lacks some layers; see :class:`bridge.engines.Engine`.

    NumPy computes those that it can, such as DetectionOutput. Others are not computed, nor what depends on them.

    Args:
        make: Makes the engine for a net without such layers.
        net: The net.
        lacking: Indices of the layers that the engine lacks.

    Attributes:
        by_numpy: Indices of the layers that NumPy computes.
        lost: Indices of the layers that are not computed.
    """

    def __init__(self, make: Callable[[ServedNet], Engine], net: ServedNet, lacking: Collection[int]) -> None:
        self._make, self._net, self._reads = make, net, net.flow.fed_reads()
        self.by_numpy = frozenset(index for index in lacking if net.layers[index].has_numpy)
        lost = set(lacking) - self.by_numpy
        for index, reads in enumerate(self._reads):
            if any(place.layer in lost for place in reads):
                lost.add(index)
        self.by_numpy -= lost
        self.lost = frozenset(lost)

    @property
    def computes(self) -> bool:
        """Whether any layer is computed."""
        return any(index not in self.lost and not layer.is_input for index, layer in enumerate(self._net.layers))

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The net's output blobs, as far as they are computed."""
        values = self._run(inputs)
        places = {name: self._net.flow.fed(self._net.flow.last[name]) for name in self._net.outputs}
        return {name: values[place] for name, place in places.items() if place in values}

    def tops(self, inputs: Arrays) -> list[Tops]:
        """Per layer, what it wrote; ``None`` for what is not computed."""
        values = self._run(inputs)
        return [
            tuple(
                inputs.get(top) if layer.is_input else values.get(Place(index, place))
                for place, top in enumerate(layer.tops)
            )
            for index, layer in enumerate(self._net.layers)
        ]

    def _run(self, inputs: Arrays) -> dict[Place, np.ndarray]:
        values = {Place(-1, place): inputs[name] for place, name in enumerate(self._net.inputs) if name in inputs}
        for layers in self._stages():
            read = dict.fromkeys(place for index in layers for place in self._reads[index] if place.layer not in layers)
            part = Segment(layers, tuple(read))
            make: Callable[[ServedNet], Engine] = NumpyEngine if layers[0] in self.by_numpy else self._make
            values |= run_piece(make, piece(self._net, part, self._reads), part, values)
        return values

    def _stages(self) -> Iterator[tuple[int, ...]]:
        """The layers in runs that one of the two computes, each after those whose values it reads."""
        stages: dict[int, int] = {}
        for index, layer in enumerate(self._net.layers):
            if layer.is_input or index in self.lost:
                continue
            least = max((stages[place.layer] for place in self._reads[index] if place.layer >= 0), default=0)
            stages[index] = least + (least % 2 != (index in self.by_numpy))
        for number in sorted(set(stages.values())):
            yield tuple(index for index, stage in stages.items() if stage == number)
