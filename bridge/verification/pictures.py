"""Pictures in an HTML page: bars and histograms as SVG, filters as PNG; all inside the page."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from bridge.schema import Net

BINS = 32
_MOST = 1 << 20
"""Values of a blob that a histogram is made of; of more, every n-th is taken."""
_DECADES = 6
"""A bar begins at this many powers of ten below the bound."""


def bar(ratio: float, failed: bool) -> str:
    """How much of its bound a difference uses, on a logarithmic scale; the mark is the bound.

    Args:
        ratio: Difference over bound.
        failed: Whether it is to look bad.
    """
    span = _DECADES + 2  # two powers of ten above the bound, then the bar is full
    length = 0.0 if ratio <= 0 else min(1.0, max(0.02, (math.log10(ratio) + _DECADES) / span))
    mark = 100 * _DECADES / span
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="{"bad" if failed else "good"}" '
        f'width="{100 * length:.1f}" height="8"/><rect class="mark" x="{mark:.1f}" width="0.8" height="8"/></svg>'
    )


def columns(counts: Sequence[int], label: str, bad: int = 0) -> str:
    """A histogram; heights grow with the logarithm, so that single values are seen.

    Args:
        counts: Number of values per column.
        label: What it shows, for people who do not see it.
        bad: How many columns at the right end are to look bad.
    """
    top = math.log1p(max(counts, default=0)) or 1.0
    width = 100 / max(1, len(counts))
    columns = "".join(
        f'<rect class="{"bad" if index >= len(counts) - bad else "good"}" x="{index * width:.2f}" '
        f'y="{40 - height:.1f}" width="{width * 0.9:.2f}" height="{height:.1f}"/>'
        for index, count in enumerate(counts)
        if (height := 40 * math.log1p(count) / top) > 0
    )
    return (
        f'<svg class="histogram" viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{columns}</svg>"
    )


def histogram(array: np.ndarray) -> tuple[list[int], float, float]:
    """Counts of the finite values in BINS equal steps, and where the steps begin and end."""
    flat = array.reshape(-1)[:: max(1, array.size // _MOST)].astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return [0] * BINS, 0.0, 0.0
    low, high = float(flat.min()), float(flat.max())
    margin = max(abs(low), abs(high)) * 1e-6 or 1.0  # values that are all equal get a range too
    counts, _ = np.histogram(flat, BINS, (low - margin, high + margin))
    return [int(count) for count in counts], low, high


def filters(net: Net, most: int = 64) -> tuple[str, str] | None:
    """The kernels of the first layer that has two-dimensional ones, as a picture.

    Args:
        net: The net.
        most: How many kernels are shown.

    Returns:
        The layer's name, and a ``data:`` address of a PNG; ``None`` if there is no such layer.
    """
    for layer in net.layers:
        if "weight" in layer.blobs and len(layer.blobs.blob("weight").shape) == 4:
            weight = layer.blobs["weight"][:most]
            if min(weight.shape) and max(weight.shape[2:]) > 1:
                return layer.name, _data(_tiles(weight.astype(np.float64)))
    return None


def _tiles(weight: np.ndarray) -> np.ndarray:
    """Kernels side by side, (height, width, 3) of bytes: blue, green, red of three channels, else their mean."""
    colours = weight[:, ::-1] if weight.shape[1] == 3 else np.repeat(weight.mean(axis=1, keepdims=True), 3, axis=1)
    finite = np.where(np.isfinite(colours), colours, 0)
    low, high = finite.min(), finite.max()
    scaled = ((finite - low) / ((high - low) or 1.0) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    number, height, width, _ = scaled.shape
    across = min(number, max(1, round(math.sqrt(number * 2))))
    down = -(-number // across)
    sheet = np.full((down * (height + 1) - 1, across * (width + 1) - 1, 3), 255, np.uint8)
    for index, tile in enumerate(scaled):
        y, x = index // across * (height + 1), index % across * (width + 1)
        sheet[y : y + height, x : x + width] = tile
    return sheet


def _data(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of (height, width, 3) bytes.

    Source: Portable Network Graphics Specification, W3C.
    """
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
