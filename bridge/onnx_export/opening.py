"""The extents of a net's inputs: which are given, which are open, and by what name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.errors import UsageError
from bridge.onnx_export.dims import Extent
from bridge.schema import Net

_LIKELY = 224
"""The height and width to try if an image's are open and no file gives them."""


def open_extents(
    net: Net, given: Mapping[str, Sequence[Extent]], dynamic_batch: bool
) -> tuple[dict[str, list[Extent]], dict[str, int], set[str]]:
    """The inputs' extents with names for open ones, the sizes to infer with, and the names asked for."""
    unknown = [name for name in given if name not in net.inputs]
    if unknown:
        raise UsageError(
            f"the net has no input '{unknown[0]}'", where=net.where, hint=f"its inputs: {', '.join(net.inputs)}"
        )
    shapes: dict[str, list[Extent]] = {}
    sizes: dict[str, int] = {}
    asked: set[str] = set()
    batch_axes = _batch_axes(net)
    for name, own in net.inputs.items():
        shape = list(given.get(name, own or ()))
        if name not in given and own is None:  # given extents may be none at all: a single number
            raise net.flow.shapeless(name)
        for axis, extent in enumerate(shape):
            if isinstance(extent, str):
                asked.add(extent)
                fallback = own[axis] if own and axis < len(own) else _LIKELY if axis > 1 else 1
                sizes.setdefault(extent, fallback)
        axis = batch_axes.get(name, 0)
        if name not in given and dynamic_batch and axis < len(shape):
            shape[axis] = _batch_symbol(int(shape[axis]), name, sizes)
        shapes[name] = shape
    return shapes, sizes, asked


def open_sides(
    net: Net, shapes: dict[str, list[Extent]], sizes: dict[str, int], given: Mapping[str, Sequence[Extent]]
) -> set[str]:
    """Names for height and width of the images among the inputs, put into ``shapes`` and ``sizes``; returns them."""
    images = [name for name, shape in shapes.items() if len(shape) == 4 and name not in given]
    images = [name for name in images if all(isinstance(side, int) and side > 1 for side in shapes[name][2:])]
    names = set()
    alike = len({tuple(shapes[name][2:]) for name in images}) == 1
    for image in images:
        for axis, side in ((2, "height"), (3, "width")):
            symbol = side if alike else f"{image}_{side}"
            if symbol not in sizes or symbol in names:
                sizes[symbol] = int(shapes[image][axis])
                shapes[image][axis] = symbol
                names.add(symbol)
    return names


def _batch_axes(net: Net) -> dict[str, int]:
    """The batch axis of each blob, as the first layer that reads it defines it."""
    axes: dict[str, int] = {}
    for layer in net.layers:
        for place, bottom in enumerate(layer.bottoms):
            axes.setdefault(bottom, layer.batch_axis(place))
    return axes


def _batch_symbol(size: int, name: str, sizes: dict[str, int]) -> str:
    """Inputs of one batch size share the symbol ``batch``; another size gets a symbol of its own."""
    symbol = "batch" if sizes.get("batch", size) == size else f"{name}_batch"
    sizes[symbol] = size
    return symbol


def fixed_extents(shapes: Mapping[str, Sequence[Extent]], sizes: Mapping[str, int]) -> dict[str, list[Extent]]:
    """The extents with numbers in the place of some names."""
    return {
        name: [sizes.get(extent, extent) if isinstance(extent, str) else extent for extent in shape]
        for name, shape in shapes.items()
    }
