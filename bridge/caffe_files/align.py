"""Where the crops of old FCN and HED nets begin: their fork works it out from the layers before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from bridge.schema.message import Message

Map = tuple[Fraction, Fraction]
"""(scale, shift): a place in a layer's bottom is at ``scale * place + shift`` in its top."""
_SAME: Map = (Fraction(1), Fraction(0))


def offsets(crop: Message, layers: Sequence[Message], views: Mapping[str, tuple[str, bool]]) -> list[int] | None:
    """Where a crop's window begins, in rows and columns.

    Args:
        crop: The layer; its bottoms are what is cut and what gives the size.
        layers: The net's layers in V2 form, in order.
        views: For each type that keeps or scales places: the message with its kernel, empty if it keeps them, and
            whether it enlarges.

    Returns:
        The two offsets; none if the bottoms do not come from one blob through such layers, or do not lie on
        whole pixels.

    Source: crop_layer.cpp and coords.hpp of the fork for FCN, which HED has too.
    """
    writers: dict[str, Message] = {}
    for layer in layers:
        for top in map(str, layer.all("top")):
            writers.setdefault(top, layer)
    source, size = (_way_back(str(bottom), writers) for bottom in crop.all("bottom")[:2])
    common = next((blob for blob in size if blob in source), None)
    if common is None:
        return None
    found = []
    for axis in (0, 1):
        maps = [_composed(way[: way.index(common)], writers, views, axis) for way in (source, size)]
        if None in maps:
            return None
        (a, b), (c, d) = (entry for entry in maps if entry is not None)
        scale, shift = c / a, d - c * b / a
        if scale != 1 or shift > 0 or shift.denominator != 1:
            return None
        found.append(int(-shift))
    return found


def _way_back(blob: str, writers: Mapping[str, Message]) -> list[str]:
    """The blob, and those it comes from: the first bottom of the layer that first writes it, and so on."""
    way = [blob]
    while (layer := writers.get(way[-1])) is not None and layer.all("bottom"):
        before = str(layer.all("bottom")[0])
        if before in way:
            break
        way.append(before)
    return way


def _composed(
    blobs: Sequence[str], writers: Mapping[str, Message], views: Mapping[str, tuple[str, bool]], axis: int
) -> Map | None:
    """The map from the blob before the last of ``blobs`` to the first of them."""
    scale, shift = _SAME
    for blob in blobs:
        own = _map(writers[blob], views, axis)
        if own is None:
            return None
        scale, shift = scale * own[0], scale * own[1] + shift
    return scale, shift


def _map(layer: Message, views: Mapping[str, tuple[str, bool]], axis: int) -> Map | None:
    """One layer's map along an axis."""
    if "crop_param" in layer:
        return Fraction(1), Fraction(-_number(layer.message("crop_param"), "offset", "", axis, 0))
    message, enlarges = views.get(layer.text("type"), (None, False))
    if not message:
        return _SAME if message == "" else None
    params, side = layer.message(message), "hw"[axis]
    kernel, stride, pad = (
        _number(params, name, f"{short}_{side}", axis, default)
        for name, short, default in (("kernel_size", "kernel", 1), ("stride", "stride", 1), ("pad", "pad", 0))
    )
    scale, shift = Fraction(stride), Fraction(kernel - 1, 2) - pad
    return (scale, shift) if enlarges or not scale else (1 / scale, -shift / scale)


def _number(params: Message, name: str, side: str, axis: int, default: int) -> int:
    values = params.all(side) or params.all(name)
    value = values[min(axis, len(values) - 1)] if values else default
    return value if isinstance(value, int) else default
