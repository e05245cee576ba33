"""Nets and layers as a notebook shows them."""

from __future__ import annotations

from typing import Any

from bridge.schema.blob import Shape, times
from bridge.schema.drawing import net_drawing
from bridge.schema.layer import Layer
from bridge.schema.net import Net, layer_rows
from bridge.show import html
from bridge.show.html import Content
from bridge.show.pictures import kernel_sheet, png

_WIDE = 400
"""Pixels that a picture of small kernels is about as wide as."""
_DRAWN = 400
"""Layers of the largest net that is drawn."""


def net_fragment(net: Net) -> str:
    """A net: what goes in and out, its drawing, and a table of its layers, both folded away."""
    facts = [("files", ", ".join(net.sources))] if net.sources else []
    facts += [("input", f"{name}: {_extents(shape)}") for name, shape in net.inputs.items()]
    facts += [("outputs", ", ".join(net.outputs))]
    columns, *rows = layer_rows(net.layers)
    drawing = html.folded("drawing", net_drawing(net).svg()) if len(net) <= _DRAWN else None
    return html.fragment(
        html.tag("b", repr(net)), html.table(("", ""), facts), drawing, html.folded("layers", html.table(columns, rows))
    )


def layer_fragment(layer: Layer) -> str:
    """A layer: its wiring, its parameters, its blobs, and its kernels where they make a picture."""
    rows = [(role, times(blob.shape), str(blob.dtype)) for role, blob in layer.blobs.entries()]
    parameters = [(name, text) for name, value in layer.attributes().items() if (text := _text(value))]
    wiring = [("reads", ", ".join(layer.bottoms)), ("writes", ", ".join(layer.tops))]
    return html.fragment(
        html.tag("b", layer.label),
        html.table(("", ""), [*wiring, *parameters]),
        html.table(("blob", "shape", "dtype"), rows) if rows else None,
        _kernels(layer),
    )


def _kernels(layer: Layer) -> Content:
    for role, blob in layer.blobs.entries()[:1]:
        if len(blob.shape) == 4 and blob.shape[1] in (1, 3) and min(blob.shape) and max(blob.shape[2:]) > 1:
            alt = f"kernels of {layer.label}"
            sheet = kernel_sheet(layer.blobs[role][:64])
            factor = max(1, _WIDE // sheet.shape[1])
            return html.image(png(sheet.repeat(factor, 0).repeat(factor, 1)), alt)
    return None


def _extents(shape: Shape | None) -> str:
    return times(shape) if shape is not None else "of unknown shape"


def _text(value: Any) -> str:
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
