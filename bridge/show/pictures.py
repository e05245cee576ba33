"""Pictures for pages: bars and histograms as SVG, pixels as PNG."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from bridge.show.html import Markup, tag

_DECADES = 6
"""A bar begins at this many powers of ten below the bound."""


def bar(ratio: float, failed: bool) -> Markup:
    """How much of its bound a difference uses, on a logarithmic scale; a mark shows the bound.

    Args:
        ratio: Difference over bound: 1e-6 is an empty bar, 1 ends at the mark, 100 fills it.
        failed: Whether the bar has the colour of a failure.
    """
    span = _DECADES + 2
    length = 0.0 if ratio <= 0 else min(1.0, max(0.02, (math.log10(ratio) + _DECADES) / span))
    mark = 100 * _DECADES / span
    return tag(
        "svg",
        tag("rect", class_="track", width=100, height=8),
        tag("rect", class_="bad" if failed else "good", width=f"{100 * length:.1f}", height=8),
        tag("rect", class_="mark", x=f"{mark:.1f}", width=0.8, height=8),
        class_="bar",
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def columns(counts: Sequence[int], label: str, bad: int = 0) -> Markup:
    """A histogram; heights grow with the logarithm, so that single values are seen.

    Args:
        counts: Number of values per column.
        label: What it shows, for screen readers.
        bad: How many columns at the right end have the colour of a failure.
    """
    top = math.log1p(max(counts, default=0)) or 1.0
    width = 100 / max(1, len(counts))
    heights = [40 * math.log1p(count) / top for count in counts]
    bars = (
        tag(
            "rect",
            class_="bad" if index >= len(counts) - bad else "good",
            x=f"{index * width:.2f}",
            y=f"{40 - height:.1f}",
            width=f"{width * 0.9:.2f}",
            height=f"{height:.1f}",
        )
        for index, height in enumerate(heights)
        if height > 0
    )
    box = {"class_": "histogram", "viewBox": "0 0 100 40", "preserveAspectRatio": "none"}
    return tag("svg", bars, role="img", aria_label=label, **box)


def contact_sheet(tiles: np.ndarray, across: int, blank: float) -> np.ndarray:
    """Tiles side by side, one pixel apart.

    Args:
        tiles: (n, C, H, W).
        across: How many stand in a row.
        blank: The value between them.

    Returns:
        (rows, columns, C), of the dtype of ``tiles``.
    """
    number, channels, height, width = tiles.shape
    down = -(-number // across)
    sheet = np.full((down * (height + 1) - 1, across * (width + 1) - 1, channels), blank, tiles.dtype)
    for index, tile in enumerate(tiles):
        top, left = index // across * (height + 1), index % across * (width + 1)
        sheet[top : top + height, left : left + width] = tile.transpose(1, 2, 0)
    return sheet


def kernel_sheet(weight: np.ndarray) -> np.ndarray:
    """Kernels side by side: blue, green, red of three channels, else their mean.

    Args:
        weight: (O, C, H, W) of floats.

    Returns:
        (height, width, 3) uint8.
    """
    weight = weight.astype(np.float64)
    colours = weight[:, ::-1] if weight.shape[1] == 3 else np.repeat(weight.mean(axis=1, keepdims=True), 3, axis=1)
    finite = np.where(np.isfinite(colours), colours, 0)
    low, high = finite.min(), finite.max()
    scaled = ((finite - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    across = min(len(scaled), max(1, round(math.sqrt(len(scaled) * 2))))
    return contact_sheet(scaled, across, blank=255)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of RGB pixels.

    Args:
        pixels: (height, width, 3) uint8.

    Source: Portable Network Graphics Specification, W3C.
    """
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
