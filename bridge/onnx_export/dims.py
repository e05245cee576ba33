"""Which extents of which blobs an exported graph leaves open.

Layers infer shapes with plain integers. What depends on an open extent is found by
inferring the net again with that extent changed: whatever moves, depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.errors import BridgeError, ModelError
from bridge.schema import Net, Shape

_STEPS = (1, 2, 33, 64)
"""How much an open extent is changed by: strides up to 64 pass at least one of these on."""

Extent = int | str
"""A fixed extent, or the name of an open one."""


class NeedsStaticError(Exception):
    """A lowering asked for an extent that is open; caught by the exporter, never seen outside.

    Attributes:
        symbols: Names of the open input extents that it depends on.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        super().__init__()
        self.symbols = frozenset(symbols)


class Dims(Sequence[Any]):
    """A shape as a lowering sees it: reading an open extent is a NeedsStaticError.

    Args:
        shape: The extents at the net's own input shapes.
        open: For each axis, the open input extents that it depends on.
    """

    def __init__(self, shape: Shape, open: Sequence[frozenset[str]]) -> None:
        self._shape, self._open = shape, tuple(open)

    def __len__(self) -> int:
        return len(self._shape)

    @property
    def extents(self) -> Shape:
        """The extents that the graph is lowered with, open ones too."""
        return self._shape

    def __getitem__(self, index: Any) -> Any:
        asked = self._open[index]
        symbols = frozenset().union(*asked) if isinstance(index, slice) else asked
        if symbols:
            raise NeedsStaticError(symbols)
        return self._shape[index]

    def fixed(self, axis: int) -> bool:
        """Whether the extent of an axis is known."""
        return not self._open[axis]

    def labels(self, prefix: str, symbols: Mapping[str, int]) -> list[Extent]:
        """Per axis a number, the name of the open input extent it equals, or a name of its own."""
        named: list[Extent] = []
        for axis, (extent, open_) in enumerate(zip(self._shape, self._open, strict=True)):
            if not open_:
                named.append(extent)
            elif len(open_) == 1 and symbols[next(iter(open_))] == extent:
                named.append(next(iter(open_)))
            else:
                named.append(f"{prefix}_dim{axis}")
        return named


def probe(net: Net, inputs: Mapping[str, Sequence[Extent]], sizes: Mapping[str, int]) -> list[tuple[Dims, ...]]:
    """The shape of every top of every layer, with the open extents that each axis depends on.

    Args:
        net: The net.
        inputs: Extents of each input blob.
        sizes: The value of each open extent that the shapes are told for.

    Raises:
        ModelError: The net's own shapes do not fit together.
        NeedsStaticError: The net does not work with one of the open extents changed.
    """
    base = net.infer(_fill(inputs, sizes))
    open_: list[list[list[set[str]]]] = [[[set() for _ in shape] for shape in tops] for tops in base]
    for symbol, size in sizes.items():
        for step in _STEPS:
            try:
                moved = net.infer(_fill(inputs, {**sizes, symbol: size + step}))
            except (ModelError, BridgeError):
                raise NeedsStaticError([symbol]) from None
            _mark(open_, base, moved, symbol)
    return [
        tuple(Dims(shape, [frozenset(axis) for axis in axes]) for shape, axes in zip(tops, marks, strict=True))
        for tops, marks in zip(base, open_, strict=True)
    ]


def _mark(
    open_: list[list[list[set[str]]]], base: list[tuple[Shape, ...]], moved: list[tuple[Shape, ...]], symbol: str
) -> None:
    for marks, before, after in zip(open_, base, moved, strict=True):
        for axes, old, new in zip(marks, before, after, strict=True):
            if len(old) != len(new):
                raise NeedsStaticError([symbol])
            for axis, (a, b) in zip(axes, zip(old, new, strict=True), strict=True):
                if a != b:
                    axis.add(symbol)


def _fill(inputs: Mapping[str, Sequence[Extent]], sizes: Mapping[str, int]) -> dict[str, Shape]:
    return {
        name: tuple(sizes[extent] if isinstance(extent, str) else extent for extent in shape)
        for name, shape in inputs.items()
    }
