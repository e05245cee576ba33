"""Pieces of a net that can be run on given inputs: single layers, and runs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bridge import engines
from bridge.engines.pieces import Place, Segment, piece, run_piece
from bridge.schema import Layer, Net

__all__ = ["Place", "Runner", "Segment", "segment", "sources"]


def sources(net: Net) -> list[tuple[Place, ...]]:
    """For each layer, where each of its bottoms was written."""
    return net.flow.fed_reads()


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
        return run_piece(
            lambda net: engines.make_partial(self.engine, net, **self.options),
            piece(self.net, part, self.reads, change),
            part,
            values,
        )

    def alone(self, index: int) -> Segment:
        """The segment that is one layer."""
        return Segment((index,), tuple(dict.fromkeys(self.reads[index])))
