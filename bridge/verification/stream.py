"""A side's values, computed a few layers at a time, and freed as soon as no later layer reads them.

The tops of a net with large images take gigabytes. A comparison goes through the layers in order, so at each
layer it needs what that layer reads and writes, and what later layers read::

    values = StreamedValues(net, inputs, compute)
    values[Place(0, 0)]  # runs the first layers
    values[Place(9, 0)]  # runs on, and frees what is not read any more
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from bridge.errors import BridgeError, BudgetError, FormatError
from bridge.limits.heap import give_back
from bridge.schema import Net, count
from bridge.verification.segments import Place, Segment, sources

FREE = 8 << 20
"""Bytes of tops that may be in memory at once, however small the layers are."""

PlacedValues = Mapping[Place, np.ndarray]
Compute = Callable[[Segment, PlacedValues], PlacedValues]
"""What some layers write, given the values that they read."""


def groups(net: Net, inputs: Mapping[str, np.ndarray]) -> list[range]:
    """The layers in runs of neighbours whose tops take at most FREE bytes together, or of one layer.

    Args:
        net: The net.
        inputs: The input blobs.
    """
    tops = net.infer({name: array.shape for name, array in inputs.items()})
    sizes = [sum(4 * count(shape) for shape in shapes) for shapes in tops]
    found: list[range] = []
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > FREE:
            found.append(range(start, index))
            start, total = index, 0
        total += size
    return [*found, range(start, len(sizes))]


class StreamedValues(Mapping[Place, np.ndarray]):
    """The values of a net's tops and inputs by place; to be asked for in the order of the layers.

    A value that was freed is computed again, from the inputs on.

    Args:
        net: The net.
        inputs: The values of its inputs; they are kept.
        runs: From :func:`groups`.
        compute: Computes the layers of a run.
        hidden: Values that it never gives, because others are computed from what was read for them.

    Attributes:
        problem: Why the values from some layer on are not there.
    """

    def __init__(
        self,
        net: Net,
        inputs: PlacedValues,
        runs: Sequence[range],
        compute: Compute,
        hidden: Collection[Place] = (),
    ) -> None:
        self._hidden = frozenset(hidden)
        self._net, self._inputs, self._runs, self._compute = net, dict(inputs), runs, compute
        self._reads = sources(net)
        self._home = {index: number for number, run in enumerate(runs) for index in run}
        self.problem: BridgeError | None = None
        self.restart()

    def restart(self) -> None:
        """Begin again with the inputs."""
        self._now, self._done = dict(self._inputs), 0
        self._shown: set[Place] = set(self._inputs)
        self._last: dict[Place, int] = {}
        for index, places in enumerate(self._reads):
            self._last.update(dict.fromkeys(places, index))
        for place in sorted(self._hidden, reverse=True):
            for read in self._reads[place.layer]:
                self._last[read] = max(self._last[read], self._last.get(place, -1))

    def __getitem__(self, place: Place) -> np.ndarray:
        self._reach(place)
        if place in self._shown and place not in self._now:
            self.restart()
            self._reach(place)
        return self._now[place]

    def __contains__(self, place: object) -> bool:
        if isinstance(place, tuple):
            self._reach(Place(*place))
        return place in self._shown

    def __iter__(self) -> Iterator[Place]:
        yield from self._inputs
        for index, layer in enumerate(self._net.layers):
            yield from (place for top, _ in enumerate(layer.tops) if (place := Place(index, top)) in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def free_read(self, index: int, free: Callable[[Place], bool]) -> None:
        """Run a layer, and free at once what it read, if no later layer reads it and ``free`` allows it."""
        self._reach(Place(index, 0))
        for place in self._reads[index]:
            if place in self._now and place not in self._inputs and self._last[place] <= index and free(place):
                del self._now[place]

    def _reach(self, place: Place) -> None:
        """Run on until the layer of a value has run."""
        number = self._home.get(place[0], -1)
        while self._done <= number:
            run = self._runs[self._done]
            self._free(run.start)
            self._run(run)
            self._done += 1

    def _run(self, run: range) -> None:
        """Compute the layers of a run; where they cannot be, none of the values from there on is shown."""
        layers = tuple(index for index in run if not self._net.layers[index].is_input)
        read = self._read_by(layers)
        if not layers or self.problem is not None or any(place not in self._now for place in read):
            return
        try:
            found = self._compute(Segment(layers, tuple(read)), self._now)
        except (BudgetError, FormatError):  # of a file that is read on the way
            raise
        except BridgeError as error:
            self.problem = error
            return
        self._now.update(found)
        self._shown.update(found)
        for index in layers:
            self._keep_what_hidden_tops_need(index)

    def _read_by(self, layers: Sequence[int]) -> list[Place]:
        """The values that some layers are computed from: what they read, or what a hidden value is computed from."""
        own = set(layers)
        found = dict.fromkeys(place for index in layers for place in self._reads[index])
        left = list(found)
        for place in left:  # grows on the way
            if place in self._hidden:
                more = [read for read in self._reads[place.layer] if read not in found]
                found.update(dict.fromkeys(more))
                left += more
        return [place for place in left if place.layer not in own and place not in self._hidden]

    def _keep_what_hidden_tops_need(self, index: int) -> None:
        """Whoever reads a top that is not shown computes it from what its layer reads."""
        hidden = [top for top in range(len(self._net.layers[index].tops)) if Place(index, top) not in self._shown]
        latest = max((self._last.get(Place(index, top), -1) for top in hidden), default=-1)
        for place in self._reads[index]:
            self._last[place] = max(self._last[place], latest)

    def _free(self, start: int) -> None:
        """Free what no layer from ``start`` on reads."""
        freed = 0
        for place in list(self._now):
            if place not in self._inputs and self._last.get(place, -1) < start:
                freed += self._now.pop(place).nbytes
        if freed >= FREE:
            give_back()
