"""The nodes of a graph that lead from some values to others."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx


class Nodes:
    """The nodes of a graph, found by what they compute.

    Args:
        nodes: In the graph's order.
        constants: Names of values that no node has to compute.
    """

    def __init__(self, nodes: Iterable[onnx.NodeProto], constants: Collection[str]) -> None:
        self._nodes, self._constants = list(nodes), constants
        self.makers = {name: index for index, node in enumerate(self._nodes) for name in node.output if name}

    def between(self, known: Collection[str], wanted: Collection[str]) -> tuple[list[onnx.NodeProto], list[str]] | None:
        """The fewest nodes that compute some values, in order, and which of the known values they read.

        Args:
            known: Values that need not be computed; one that is wanted as well is computed all the same.
            wanted: The values.

        Returns:
            ``None`` if they need a value that is not known, no constant, and not computed by any node.
        """
        needed: set[int] = set()
        used: dict[str, None] = {}
        left = list(wanted)
        while left:
            name = left.pop()
            index = self.makers.get(name)
            if name in known and name not in wanted:
                used[name] = None
            elif index is None:
                if name not in self._constants:
                    return None
            elif index not in needed:
                needed.add(index)
                left += [read for read in self._nodes[index].input if read]
        return [self._nodes[index] for index in sorted(needed)], list(used)
