"""A net as a drawing: layers that work in place share a box, repeated blocks are drawn once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bridge.errors import BridgeError, printable
from bridge.schema.blob import Shape, times
from bridge.schema.layer import Layer
from bridge.show.graph import Box, Drawing, Frame

_LONGEST_PERIOD = 12
"""Stretches in one repeated block, at most."""
_SHAPES = 3
"""Outputs of a layer whose shapes are drawn."""
_LONG = 40
"""Letters of a name that are drawn."""


@dataclass
class _Cell:
    """A layer, with those after it that work in place, or one input blob."""

    layers: list[Layer]
    reads: list[int] = field(default_factory=list)
    shapes: tuple[Shape, ...] = ()
    name: str = ""

    @property
    def is_input(self) -> bool:
        """Whether it is fed from outside."""
        return not self.layers or self.layers[0].is_input

    @property
    def signature(self) -> tuple[Any, ...]:
        """What makes two cells alike: the types of their layers, and the extents of their kernels."""
        return tuple((layer.type, _kernel(layer)) for layer in self.layers)


def net_drawing(net: Any, *, fold: bool = True) -> Drawing:
    """A net as a drawing.

    A box is a layer with those that work in place on its top: a convolution with its ReLU. It shows name, type, the
    extents of a kernel, and the shape of the output. Where a block comes at least three times in a row, or twice and
    has three boxes or more, it is drawn once, in a frame that says how often it comes.

    Args:
        net: A :class:`~bridge.schema.Net`.
        fold: Whether repeated blocks are drawn once.
    """
    cells = _cells(net)
    groups = _repeats(cells) if fold else []
    hidden = {index for first, size, times_ in groups for index in range(first + size, first + size * times_)}
    moved = {
        first + size * repeat + offset: first + size + offset - size
        for first, size, number in groups
        for repeat in range(1, number)
        for offset in range(size)
    }
    kept = [index for index in range(len(cells)) if index not in hidden]
    place = {index: number for number, index in enumerate(kept)}
    boxes = [_box(cells[index], [place[moved.get(read, read)] for read in cells[index].reads]) for index in kept]
    frames = [
        Frame(
            tuple(place[index] for index in range(first, first + size)),
            f"{number} times: {_short(cells[first].name)} to {_short(cells[first + size * number - 1].name)}",
        )
        for first, size, number in groups
    ]
    return Drawing(boxes, frames)


def _cells(net: Any) -> list[_Cell]:
    try:
        shapes: list[tuple[Shape, ...]] = net.flow.infer()
    except BridgeError:
        shapes = []
    cells: list[_Cell] = []
    writer: dict[str, int] = {}
    for name, shape in net.inputs.items():
        if not any(layer.is_input and name in layer.tops for layer in net.layers):
            writer[name] = len(cells)
            cells.append(_Cell([], [], (shape,) if shape is not None else (), name))
    for index, layer in enumerate(net.layers):
        reads = [writer[bottom] for bottom in layer.bottoms if bottom in writer]
        if layer.tops == layer.bottoms and len(reads) == 1 and _takes_more(cells, reads[0]):
            cells[reads[0]].layers.append(layer)
            continue
        writer.update(dict.fromkeys(layer.tops, len(cells)))
        cells.append(_Cell([layer], reads, shapes[index] if shapes else (), layer.name))
    return cells


def _takes_more(cells: list[_Cell], index: int) -> bool:
    """Whether a layer that works in place on a cell's value may share its box: nothing else reads that value before."""
    own = cells[index].layers
    return bool(own) and len(own[0].tops) == 1 and not any(index in cell.reads for cell in cells)


def _stretches(cells: list[_Cell]) -> list[tuple[int, int]]:
    """The cells cut where only one value goes on: each stretch has one way in and one way out."""
    last = list(range(len(cells)))
    for index, cell in enumerate(cells):
        for read in cell.reads:
            if not cells[read].is_input:  # an input may be read anywhere: detection layers read the image's size
                last[read] = max(last[read], index)
    made, start, reach = [], 0, 0
    for index, cell in enumerate(cells):
        reach = max([reach, *(last[other] for other in cell.reads)])
        if reach <= index:  # nothing from before this cell is read behind it
            made.append((start, index + 1))
            start = index + 1
    return [*made, (start, len(cells))] if start < len(cells) else made


def _sign(cells: list[_Cell], index: int) -> object:
    """What a cell has in common with those that it may be drawn for; inputs stand for themselves."""
    return index if cells[index].is_input else cells[index].signature


def _step(cells: list[_Cell], index: int, read: int) -> tuple[str, int]:
    """Which cell is read, so that blocks which come again read the same: from here back, or an input."""
    return ("input", read) if cells[read].is_input else ("back", index - read)


def _repeats(cells: list[_Cell]) -> list[tuple[int, int, int]]:
    """Blocks that come several times in a row: index of the first cell, cells of one block, how often it comes."""
    stretches = _stretches(cells)
    signs = [
        tuple((_sign(cells, i), tuple(_step(cells, i, read) for read in cells[i].reads)) for i in range(a, b))
        for a, b in stretches
    ]
    found, taken = [], [False] * len(stretches)
    for period in range(1, _LONGEST_PERIOD + 1):  # the shortest first, so that no block repeats inside another
        place = 0
        while place + 2 * period <= len(stretches):
            number = 1
            while _alike(signs, taken, place, period, number):
                number += 1
            size = sum(b - a for a, b in stretches[place : place + period])
            if number >= 3 + (size == 1) - (size >= 3):
                taken[place : place + number * period] = [True] * (number * period)
                found.append((stretches[place][0], size, number))
                place += number * period
            else:
                place += 1
    return sorted(found)


def _alike(signs: list[Any], taken: list[bool], place: int, period: int, number: int) -> bool:
    """Whether the stretches at ``place`` come once more after ``number`` times, all of them free."""
    start = place + number * period
    free = not any(taken[place : start + period])
    return free and start + period <= len(signs) and signs[place : place + period] == signs[start : start + period]


def _box(cell: _Cell, reads: list[int]) -> Box:
    own = cell.layers[0] if cell.layers else None
    if own is None:  # an input that no layer declares
        return Box((_short(cell.name), *_shape(cell)), (), "input")
    types = " + ".join(layer.type for layer in cell.layers)
    name = ", ".join(own.tops) if own.is_input else own.name
    lines = (_short(name), _short(f"{_kernel(own)} {types}".strip()), *_shape(cell))
    kind = "input" if cell.is_input else "weights" if any(layer.blobs for layer in cell.layers) else ""
    return Box(lines, tuple(dict.fromkeys(reads)), kind)


def _shape(cell: _Cell) -> tuple[str, ...]:
    """A line for the shape of each output, the first ones of many."""
    lines = tuple(map(times, cell.shapes[:_SHAPES]))
    return (*lines, f"and {len(cell.shapes) - _SHAPES} more") if len(cell.shapes) > _SHAPES else lines


def _kernel(layer: Layer) -> str:
    """``3 x 3`` for a layer whose weight has a kernel of that size, or that declares one."""
    for _, blob in layer.blobs.entries()[:1]:
        if len(blob.shape) == 4:
            return times(blob.shape[2:])
    size = layer.attributes().get("kernel_size")
    if not isinstance(size, tuple) or not size or not all(size):
        return ""
    return times(size if len(size) > 1 else size * 2)


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}\u2026"
