"""How far the blobs of two nets are apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bridge.schema.blob import Blob, times
from bridge.schema.layer import Layer
from bridge.schema.net import Net
from bridge.show.table import table_text


@dataclass(frozen=True)
class BlobDiff:
    """A blob that two nets do not have alike.

    Attributes:
        layer: The layer's name.
        role: The blob's role.
        largest: The largest absolute difference of two values; infinite where only one is finite.
        moved: The norm of the difference, divided by that of the first net's values.
        detail: What differs if not the values: one net does not have it, or has another shape.
    """

    layer: str
    role: str
    largest: float = 0.0
    moved: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class NetDiff:
    """The blobs that differ between two nets; ``print`` shows them as a table. False where there are none.

    Attributes:
        blobs: Those that differ, in the order of the first net.
        same: How many are the same to the last bit.
    """

    blobs: tuple[BlobDiff, ...]
    same: int

    def __bool__(self) -> bool:
        return bool(self.blobs)

    def __str__(self) -> str:
        rows = [
            (b.layer, b.role, *(("", "") if b.detail else (f"{b.largest:.3g}", f"{b.moved:.2%}")), b.detail)
            for b in self.blobs
        ]
        counts = f"{len(self.blobs)} differ, {self.same} are the same"
        return (
            f"{table_text(('layer', 'blob', 'largest difference', 'moved by', ''), rows)}\n{counts}" if rows else counts
        )


def diff(a: Net, b: Net) -> NetDiff:
    """See :meth:`bridge.Net.diff`; layers of one name are compared in their order."""
    found = [
        _blob_diff(name, role, x, y)
        for name, old, new in _pairs(a, b)
        for role in dict.fromkeys([*(old.blobs if old else ()), *(new.blobs if new else ())])
        for x, y in [(_blob(old, role), _blob(new, role))]
    ]
    return NetDiff(tuple(entry for entry in found if entry is not None), sum(entry is None for entry in found))


def _pairs(a: Net, b: Net) -> Iterator[tuple[str, Layer | None, Layer | None]]:
    for name in dict.fromkeys([*a.layer_names, *b.layer_names]):
        olds, news = ([layer for layer in net.layers if layer.name == name] for net in (a, b))
        for old, new in itertools.zip_longest(olds, news):
            yield name, old, new


def _blob(layer: Layer | None, role: str) -> Blob | None:
    return layer.blobs.blob(role) if layer is not None and role in layer.blobs else None


def _blob_diff(layer: str, role: str, a: Blob | None, b: Blob | None) -> BlobDiff | None:
    if a is None or b is None:
        return BlobDiff(layer, role, detail="only in the first net" if b is None else "only in the second net")
    if a.origin is b.origin and a.shape == b.shape:
        return None
    if a.shape != b.shape:
        return BlobDiff(layer, role, detail=f"{times(a.shape)} against {times(b.shape)}")
    x, y = (blob.numpy().astype(np.float64) for blob in (a, b))
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if a.dtype == b.dtype and same.all():
        return None
    with np.errstate(all="ignore"):
        apart = np.where(same, 0.0, np.abs(x - y))
        apart[np.isnan(apart)] = np.inf
        return BlobDiff(layer, role, float(apart.max(initial=0)), float(np.linalg.norm(apart) / np.linalg.norm(x)))
