"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bridge.blob import Blob, times


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """One line per row, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def layer_rows(layers: Iterable[Any]) -> list[list[str]]:
    """The columns' names, then a row for each blob of each layer, and for each layer that has none."""
    rows = [["layer", "type", "group", "blob", "shape", "dtype"]]
    for layer in layers:
        head = [layer.name, layer.type, str(layer.group) if layer.group > 1 else ""]
        for role, blob in layer.blobs.entries() or [("", None)]:
            rows.append([*head, role, *((times(blob.shape), str(blob.dtype)) if blob else ("", ""))])
            head = [""] * len(head)
    grouped = any(row[2] for row in rows[1:])
    return rows if grouped else [[*row[:2], *row[3:]] for row in rows]


def distinct(layers: Iterable[Any]) -> list[Blob]:
    """Every blob once, however many layers share it."""
    return list({id(blob.origin): blob for layer in layers for _, blob in layer.blobs.entries()}.values())
