"""Who writes what and who reads it: values behind the names of blobs.

A layer that works in place writes a new value under an old name. A value is (index of the layer,
place among its tops); one that nobody writes, a net's input without a layer, has the index -1.
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.schema import Net

Value = tuple[int, int]


class Wiring:
    """The flow of values through a net.

    Attributes:
        net: The net.
        reads: For each layer, the values of its bottoms.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.reads: list[tuple[Value, ...]] = []
        self._undriven: list[str] = []
        last: dict[str, Value] = {}
        for index, layer in enumerate(net.layers):
            self.reads.append(tuple(self._find(bottom, last) for bottom in layer.bottoms))
            last.update((top, (index, place)) for place, top in enumerate(layer.tops))
        self._last = last
        self._learned = self._forward_learned()

    def _find(self, name: str, last: dict[str, Value]) -> Value:
        if name not in last:
            last[name] = (-1, len(self._undriven))
            self._undriven.append(name)
        return last[name]

    def name(self, value: Value) -> str:
        """The blob that held the value."""
        index, place = value
        return self.net.layers[index].tops[place] if index >= 0 else self._undriven[place]

    def readers(self, value: Value) -> list[int]:
        """The layers that read a value, itself or through a Split."""
        found = []
        for index, values in enumerate(self.reads):
            if value in values:
                split = self.net.layers[index].type == "Split"
                tops = range(len(self.net.layers[index].tops))
                found += [i for place in tops for i in self.readers((index, place))] if split else [index]
        return found

    def behind_splits(self, value: Value) -> Value:
        """The value that a Split's top is a name of."""
        while value[0] >= 0 and self.net.layers[value[0]].type == "Split":
            value = self.reads[value[0]][0]
        return value

    def unread(self) -> set[Value]:
        """The values that are a net's outputs: last under their name, and read by no layer."""
        read = {value for values in self.reads for value in values}
        return {value for value in self._last.values() if value not in read and value[0] >= 0}

    def ancestry(self, values: Iterable[Value]) -> set[Value]:
        """The values, and all that they are computed from."""
        needed: set[Value] = set()
        left = list(values)
        while left:
            value = left.pop()
            if value not in needed:
                needed.add(value)
                left += self.reads[value[0]] if value[0] >= 0 else ()
        return needed

    def origins(self, values: Iterable[Value]) -> set[Value]:
        """The values that these are computed from and that are themselves computed from none, such as inputs."""
        return {value for value in self.ancestry(values) if value[0] < 0 or not self.reads[value[0]]}

    def learned(self, value: Value) -> bool:
        """Whether a value depends on parameters."""
        return value[0] >= 0 and self._learned[value[0]]

    def _forward_learned(self) -> list[bool]:
        learned: list[bool] = []
        for layer, values in zip(self.net.layers, self.reads, strict=True):
            own = bool(layer.blobs) or bool(getattr(layer, "roles", lambda _: ())(0))
            learned.append(own or any(index >= 0 and learned[index] for index, _ in values))
        return learned
