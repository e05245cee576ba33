"""The figures: filters, histograms, features, and a drawing's picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.errors import UsageError
from bridge.schema import Layer, Net, times
from bridge.schema.net import distinct
from bridge.show.figures import SOFT, figure_of, styled
from bridge.show.graph import COLOURS, Drawing, points
from bridge.show.pictures import contact_sheet
from bridge.verification.pictures import histogram

MOST_TILES, MOST_PANELS = 256, 64
"""Filters or features of one picture, and blobs or layers of one."""
_BLUE = "#2f6db3"


def filters(layer: Layer) -> Any:
    """A layer's kernels, tiled.

    Kernels of 3 channels are pictures in colour (Caffe's order is blue, green, red), those of 1 channel in grey. Of
    others a row is a filter, a column an input channel.

    Args:
        layer: A layer whose first blob has four axes.

    Raises:
        UsageError: It has no such blob.
    """
    entries = layer.blobs.entries()
    if not entries or len(entries[0][1].shape) != 4 or not min(entries[0][1].shape):
        raise UsageError("has no kernels of two dimensions", subject=layer.label, hint="name a convolution")
    role, blob = entries[0]
    weight = np.asarray(blob.numpy(), np.float64)
    finite = np.where(np.isfinite(weight), weight, 0)
    reach = max(float(np.abs(finite).max()), 1e-12)
    scaled = np.clip(0.5 + finite / (2 * reach), 0, 1)
    title = f"{layer.name}: {role} {times(blob.shape)}, black is {-reach:.3g}, white {reach:.3g}"
    if blob.shape[1] in (1, 3):
        tiles, across = scaled[:MOST_TILES], max(1, round(math.sqrt(2 * min(len(scaled), MOST_TILES))))
    else:
        side = math.isqrt(MOST_TILES)
        part = scaled[:side, :side]
        tiles, across = part.reshape(-1, 1, *part.shape[2:]), part.shape[1]
        title += f"\nrows are the first {part.shape[0]} filters, columns the first {across} channels"
    return _sheet(tiles, across, title)


def _sheet(tiles: np.ndarray, across: int, title: str) -> Any:
    """Tiles (n, 1 or 3, H, W) in 0 to 1 as a figure."""
    sheet = contact_sheet(tiles, min(across, len(tiles)), blank=1)
    pixels = sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet[..., ::-1]
    height, width = pixels.shape[:2]
    with styled():
        figure = figure_of(9, max(1.5, min(24, 9 * height / width)) + 0.7)
        axes = figure.add_subplot()
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def histograms(net: Net) -> Any:
    """How the values of each blob are spread; counts are on a logarithmic scale.

    Args:
        net: A net with weights.

    Raises:
        UsageError: It has none.
    """
    owned = {id(blob.origin) for blob in distinct(net.layers)}
    entries = []
    for layer in net.layers:
        for role, blob in layer.blobs.entries():
            if id(blob.origin) in owned and blob.size:
                owned.discard(id(blob.origin))
                entries.append((f"{layer.name}  {role}", blob))
    if not entries:
        raise UsageError("holds no weights", where=net.where, hint="give the file of weights as well")
    shown = entries[:MOST_PANELS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with styled():
        figure = figure_of(2.9 * columns, 1.9 * rows + 0.4)
        for place, (title, blob) in enumerate(shown):
            counts, low, high = histogram(blob.numpy())
            axes = figure.add_subplot(rows, columns, place + 1)
            edges = np.linspace(low, high, len(counts) + 1) if low < high else np.linspace(low - 1, low + 1, 33)
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_BLUE)
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_title(title, fontsize=9)
            axes.set_xlabel(times(blob.shape), fontsize=8)
            axes.tick_params(labelsize=7)
        if len(entries) > len(shown):
            figure.suptitle(f"the first {len(shown)} of {len(entries)} blobs", fontsize=10, color=SOFT)
    return figure


def features(maps: Mapping[str, np.ndarray]) -> Any:
    """What layers make of an image.

    Args:
        maps: Title -> (C, H, W) float, one for each layer. Of more than 256 channels the first are shown.
    """
    with styled():
        rows = [_rows(array) for array in maps.values()]
        figure = figure_of(9, sum(rows) + 0.5 * len(rows))
        grid = figure.add_gridspec(len(maps), 1, height_ratios=rows)
        for place, (title, array) in enumerate(maps.items()):
            axes = figure.add_subplot(grid[place])
            axes.imshow(_tiled(array), cmap="viridis", interpolation="nearest", aspect="equal")
            axes.set_title(f"{title}  {times(array.shape)}", fontsize=10)
            axes.set_axis_off()
    return figure


def _across(array: np.ndarray) -> int:
    return max(1, min(len(array), round(math.sqrt(3 * min(len(array), MOST_TILES)))))


def _rows(array: np.ndarray) -> float:
    """The height of a layer's sheet at 9 inches of width."""
    across = _across(array)
    down = -(-min(len(array), MOST_TILES) // across)
    return float(max(0.8, min(9.0, 9 * down * array.shape[1] / (across * array.shape[2]))))


def _tiled(array: np.ndarray) -> np.ndarray:
    """Each channel on its own scale, so that a weak one is seen too."""
    tiles = np.where(np.isfinite(array), array, 0)[:MOST_TILES].astype(np.float64)
    low, high = tiles.min((1, 2), keepdims=True), tiles.max((1, 2), keepdims=True)
    scaled = (tiles - low) / np.where(high > low, high - low, 1)
    return contact_sheet(scaled[:, None], _across(array), blank=np.nan)[..., 0]


def drawing_figure(drawing: Drawing) -> Any:
    """A drawing as a figure, for files of pixels."""
    from matplotlib.patches import FancyBboxPatch

    with styled():
        figure = figure_of(drawing.width / 100, drawing.height / 100)
        figure.set_layout_engine(None)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, drawing.width)
        axes.set_ylim(drawing.height, 0)
        axes.set_axis_off()
        for path in drawing.edges:
            x, y = zip(*points(path), strict=True)
            axes.plot(x, y, color="#8a97a5", linewidth=0.9)
        for title, left, top, right, bottom in drawing.frames:
            axes.add_patch(_patch(FancyBboxPatch, left, top, right, bottom, "none", "#b0762b", "--"))
            axes.text(left + 8, top + 11, title, color="#b0762b", fontsize=7, va="center", backgroundcolor="white")
        for place in drawing.boxes:
            if place.box is None:
                continue
            sides = (place.x - place.width / 2, place.y, place.x + place.width / 2, place.y + place.height)
            axes.add_patch(_patch(FancyBboxPatch, *sides, COLOURS[place.box.kind], "#8a97a5", "-"))
            _write(axes, place.box.lines, place.x, place.y)
    return figure


def _write(axes: Any, lines: Sequence[str], x: float, y: float) -> None:
    for number, line in enumerate(lines):
        style = {"color": SOFT} if number else {"fontweight": "bold"}
        axes.text(x, y + 13 + 16 * number, line, ha="center", va="center", fontsize=7.5, **style)


def _patch(kind: Any, left: float, top: float, right: float, bottom: float, fill: str, edge: str, line: str) -> Any:
    shape = {"boxstyle": "round,pad=0,rounding_size=5", "facecolor": fill, "edgecolor": edge, "linestyle": line}
    return kind((left, top), right - left, bottom - top, zorder=2 if line == "-" else 0, **shape)
