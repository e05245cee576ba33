"""Which extents of which blobs an exported graph leaves open.

Layers infer shapes with plain integers. What depends on an open extent is found by
inferring the net again with that extent changed: whatever moves, depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.errors import BridgeError
from bridge.schema import Net, Shape
from bridge.schema.flow import Stretch

_STEPS = (1, 2, 33, 64)
"""How much an open extent is changed by: strides up to 64 pass at least one of these on."""

Extent = int | str
"""A fixed extent, or the name of an open one."""


class NeedsStaticError(Exception):
    """A lowering read an extent that is open; the exporter catches it.

    Attributes:
        symbols: Names of the open input extents that it depends on.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        super().__init__()
        self.symbols = frozenset(symbols)


class Dims(Sequence[Any]):
    """The shape that a lowering gets: reading an open extent raises NeedsStaticError.

    Args:
        shape: The extents at the net's own input shapes.
        open: For each axis, the open extents that it depends on.
        equal: For each axis, the open extent that it equals, if it does.
    """

    def __init__(self, shape: Shape, open: Sequence[frozenset[str]], equal: Sequence[str | None]) -> None:
        self._shape, self._open, self._equal = shape, tuple(open), tuple(equal)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, index: Any) -> Any:
        asked = self._open[index]
        symbols = frozenset().union(*asked) if isinstance(index, slice) else asked
        if symbols:
            raise NeedsStaticError(symbols)
        return self._shape[index]

    @property
    def extents(self) -> Shape:
        """The extents that the net was inferred with, those of open axes among them."""
        return self._shape

    def fixed(self, axis: int) -> bool:
        """Whether the extent of an axis is known."""
        return not self._open[axis]

    def labels(self, prefix: str) -> list[Extent]:
        """Per axis a number, the name of the open input extent it equals, or a name of its own."""
        return [
            (same or f"{prefix}_dim{axis}") if open_ else extent
            for axis, (extent, open_, same) in enumerate(zip(self._shape, self._open, self._equal, strict=True))
        ]


def input_dims(shape: Sequence[Extent], sizes: Mapping[str, int]) -> Dims:
    """The shape of an input; each open extent depends on itself only."""
    names = [extent if isinstance(extent, str) else None for extent in shape]
    return Dims(_sized(shape, sizes), [frozenset([name] if name else []) for name in names], names)


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
    shapes = {name: _sized(shape, sizes) for name, shape in inputs.items()}
    base = net.infer(shapes)
    marks = [[[_Axis() for _ in shape] for shape in tops] for tops in base]
    for symbol, size in sizes.items():
        for step in _STEPS:
            changed = {**sizes, symbol: size + step}
            moved = _infer(net, {name: _sized(shape, changed) for name, shape in inputs.items()}, symbol)
            _mark(marks, base, moved, symbol, size, step)
    for index, layer in enumerate(net.layers):
        for axis in layer.data_dependent:
            symbol = f"{layer.tops[0]}_dim{axis}"
            for step in _STEPS:
                moved = _infer(net, shapes, symbol, Stretch(index, axis, step))
                _mark(marks, base, moved, symbol, base[index][0][axis], step)
    return [
        tuple(
            Dims(shape, [frozenset(axis.symbols) for axis in axes], [axis.equal() for axis in axes])
            for shape, axes in zip(tops, marked, strict=True)
        )
        for tops, marked in zip(base, marks, strict=True)
    ]


class _Axis:
    """One axis: the open extents that it depends on, and those that it does not equal."""

    def __init__(self) -> None:
        self.symbols: set[str] = set()
        self.unlike: set[str] = set()

    def equal(self) -> str | None:
        """The one open extent that the axis always has."""
        (*symbols,) = self.symbols
        return symbols[0] if len(symbols) == 1 and symbols[0] not in self.unlike else None


def _mark(
    marks: list[list[list[_Axis]]],
    base: list[tuple[Shape, ...]],
    moved: list[tuple[Shape, ...]],
    symbol: str,
    size: int,
    step: int,
) -> None:
    for marked, before, after in zip(marks, base, moved, strict=True):
        for axes, old, new in zip(marked, before, after, strict=True):
            if len(old) != len(new):
                raise NeedsStaticError([symbol])
            for axis, a, b in zip(axes, old, new, strict=True):
                if a != b:
                    axis.symbols.add(symbol)
                if a != size or b != size + step:
                    axis.unlike.add(symbol)


def _infer(
    net: Net, shapes: Mapping[str, Shape], symbol: str, stretch: Stretch | None = None
) -> list[tuple[Shape, ...]]:
    try:
        return net.flow.infer(shapes, stretch=stretch)
    except BridgeError:
        raise NeedsStaticError([symbol]) from None


def _sized(shape: Sequence[Extent], sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes[extent] if isinstance(extent, str) else extent for extent in shape)


def fits(shape: Shape, extents: Sequence[Extent], sizes: Mapping[str, int]) -> bool:
    """Whether a shape has the given extents: numbers, or names of extents in ``sizes``."""
    wanted = [sizes.get(extent, -1) if isinstance(extent, str) else extent for extent in extents]
    return len(shape) == len(wanted) and all(n in (-1, m) for n, m in zip(wanted, shape, strict=True))


def label(extents: Sequence[Extent], between: str = " x ") -> str:
    """Extents for people: ``batch x 3 x 224 x 224``."""
    return between.join(map(str, extents)) or "a scalar"
