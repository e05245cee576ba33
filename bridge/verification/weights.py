"""Bit equality of stored blobs: reader against reader, file against file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import BridgeError, Hints, UsageError
from bridge.files import readers
from bridge.schema import Blob, Layer, Net, RawLayer, RawNet, times
from bridge.schema.message import Message
from bridge.verification.compare import bit_difference
from bridge.verification.results import DIFFERENT, SKIPPED, BlobResult, WeightsResult

Key = tuple[str, int, int]
"""Layer name, which of the layers of that name, and place of the blob in it."""


@dataclass(frozen=True)
class Files:
    """A model as it was named: definition and weights.

    Attributes:
        definition: The prototxt, if one was given.
        weights: The file of weights.
        options: How to read it (reader, phase, ...), as of :func:`bridge.load`.
    """

    definition: Path | None
    weights: Path
    options: dict[str, Any]

    @classmethod
    def of(cls, files: Any, options: dict[str, Any]) -> Files:
        """Tell definition from weights.

        Raises:
            UsageError: There are no weights.
        """
        definition, weights = readers.split_files([files] if isinstance(files, (str, Path)) else list(files))
        if weights is None:
            raise UsageError("holds no weights", where=str(definition), hint="give the file of weights as well")
        return cls(definition, weights, options)

    @property
    def names(self) -> tuple[str, ...]:
        """The files by name."""
        return tuple(str(path) for path in (self.definition, self.weights) if path)

    @property
    def kind(self) -> str:
        """What the weights are, as :mod:`bridge.files.sniff` calls it."""
        return readers.kind_of(self.weights).name

    def read(self, reader: str = "auto", definition: Path | None = None) -> Loaded:
        """Read the weights with one reader.

        Args:
            reader: Its name.
            definition: A prototxt to use where the model was given without one.
        """
        path = self.definition or definition
        rest = dict(self.options)
        names = ("phase", "level", "stages", "zero_scale_factor", "allow_unknown_fields")
        net_options = {name: rest.pop(name) for name in names if name in rest}
        raw = readers.read(self.weights, path, reader=reader, **rest)
        parsed = prototxt.parse_file(path) if path else None
        sources = [str(file) for file in (path, self.weights) if file]
        return Loaded(_without_reworked(raw), assemble(raw, parsed, sources=sources, **net_options), parsed)


class Loaded(NamedTuple):
    """What a reader delivered, the net made of it, and the prototxt if there is one."""

    raw: RawNet
    net: Net
    definition: Message | None


class StoredPart(NamedTuple):
    """A stored blob, or a layer whose blobs the reader could not deliver (``blob`` is ``None``)."""

    layer: str
    type: str
    role: str
    blob: Blob | None
    why: str = ""


StoredParts = dict[Key, StoredPart]


def stored_parts(loaded: Loaded) -> StoredParts:
    """Every blob that the file stores, whether the net uses it or not, in the file's order."""
    found: StoredParts = {}
    seen: dict[str, int] = {}
    typed_by: dict[tuple[str, int], Layer] = {}  # the first layer of each name with so many blobs
    for typed in loaded.net.layers:
        typed_by.setdefault((typed.name, len(typed.blobs)), typed)
    for layer in loaded.raw.layers:
        if layer.blobs or layer.uncovered:
            occurrence = seen[layer.name] = seen.get(layer.name, -1) + 1
            found.update(_stored(layer, occurrence, typed_by.get((layer.name, len(layer.blobs)))))
    for typed in loaded.net.layers:  # a format that stores a shared blob once has it under one layer only
        if typed.name not in seen:
            for index, (role, blob) in enumerate(typed.blobs.entries()):
                found[typed.name, 0, index] = StoredPart(typed.name, typed.type, role, blob)
    return found


def _stored(layer: RawLayer, occurrence: int, typed: Layer | None) -> Iterator[tuple[Key, StoredPart]]:
    if layer.uncovered:
        yield (layer.name, occurrence, -1), StoredPart(layer.name, layer.type, "", None, layer.uncovered)
    roles = typed.blobs.entries() if typed else []
    for index, blob in enumerate(layer.blobs):
        role, shaped = f"blob{index}", blob
        if index < len(roles):
            role, twin = roles[index]
            if blob is None:  # the file has a shared parameter under the first of its layers only
                shaped = twin
            elif twin.size == blob.size:
                shaped = blob.reshaped(twin.shape)
        kind = layer.type or (typed.type if typed else "")
        yield (layer.name, occurrence, index), StoredPart(layer.name, kind, role, shaped)


def _without_reworked(raw: RawNet) -> RawNet:
    """A reader of exported files delivers blobs that are not the source's own: their bits prove nothing."""
    return dataclasses.replace(
        raw,
        layers=tuple(dataclasses.replace(layer, uncovered=layer.uncovered or layer.reworked) for layer in raw.layers),
    )


def compare_weights(a: StoredParts, b: StoredParts, names: tuple[str, str], *, rounded: bool = False) -> WeightsResult:
    """Compare all blobs of two sides.

    Args:
        a: One side, from :func:`stored_parts`.
        b: The other side.
        names: What to call the sides.
        rounded: Whether side ``b`` is a float16 export: where it has float16, side ``a`` is rounded to it.
    """
    pair = _Pair(a, b, names, rounded)
    results = [pair.compare(key) for key in dict.fromkeys([*a, *b])]
    return WeightsResult(*names, blobs=tuple(result for result in results if result is not None))


class _Pair:
    """Two sides, with what each comparison asks of all their keys worked out once."""

    def __init__(self, a: StoredParts, b: StoredParts, names: tuple[str, str], rounded: bool) -> None:
        self.a, self.b, self.names, self.rounded = a, b, names, rounded
        own, other = ({key[0] for key in side} for side in (a, b))
        self.lacking = {id(a): Hints(sorted(other - own)), id(b): Hints(sorted(own - other))}
        self.layers = {id(a): own, id(b): other}
        self.known = {key[:2] for side in (a, b) for key in side if key[2] >= 0}

    def compare(self, key: Key) -> BlobResult | None:
        """The result for one key."""
        ours, theirs = self.a.get(key), self.b.get(key)
        part = ours or theirs
        if part is None:
            return None
        for side, name in ((self.a, self.names[0]), (self.b, self.names[1])):
            gap = side.get((key[0], key[1], -1))
            if gap is not None:
                return self._gap(key, part, gap, name)
        known = part.blob
        subject = (part.layer, part.type, part.role, known.shape if known else (), str(known.dtype) if known else "")
        if ours is None or theirs is None or ours.blob is None or theirs.blob is None:
            why = f"only in {self.names[0] if ours else self.names[1]}{self._nearest(key)}"
            return BlobResult(*subject, DIFFERENT, why)
        if self.rounded and theirs.blob.dtype == np.float16:
            return compare_rounded(BlobResult(*subject), ours.blob, theirs.blob)
        return compare_blob(BlobResult(*subject), ours.blob, theirs.blob)

    def _gap(self, key: Key, part: StoredPart, gap: StoredPart, name: str) -> BlobResult | None:
        """The result for a layer that one side could not deliver; one per blob where the other side knows them."""
        if key[2] < 0 and key[:2] in self.known:
            return None
        known = part.blob
        shape, dtype = (known.shape, str(known.dtype)) if known else ((), "")
        return BlobResult(part.layer, part.type, part.role or "all", shape, dtype, SKIPPED, f"{name}: {gap.why}")

    def _nearest(self, key: Key) -> str:
        own, other = (self.a, self.b) if key in self.a else (self.b, self.a)
        hint = self.lacking[id(own)](key[0]) if key[0] not in self.layers[id(other)] else ""
        return f"; {hint}" if hint else ""


def compare_blob(subject: BlobResult, a: Blob, b: Blob) -> BlobResult:
    """Compare the values of two blobs; ``subject`` says which blob it is."""
    if a.size != b.size or _squeezed(a) != _squeezed(b):
        return dataclasses.replace(subject, status=DIFFERENT, why=f"shape {times(a.shape)} against {times(b.shape)}")
    x, y, why = _common(a.numpy(), b.numpy())
    found = bit_difference(x, y)
    if found is None:
        return dataclasses.replace(subject, why=why)
    return dataclasses.replace(
        subject,
        status=DIFFERENT,
        why=why,
        index=found.index,
        values=found.values,
        differing=found.count,
        ulps=found.ulps,
        spread=found.spread,
    )


def compare_rounded(subject: BlobResult, a: Blob, b: Blob) -> BlobResult:
    """Compare a blob, rounded to float16 and limited to its range, with one that is stored so.

    A value below float16's smallest may be that or zero: converters differ.
    """
    largest, least = np.finfo(np.float16).max, np.finfo(np.float16).smallest_subnormal

    def values() -> np.ndarray:
        exact, stored = a.numpy(), b.numpy().reshape(a.shape)
        found: np.ndarray = np.clip(exact, -largest, largest).astype(np.float16)
        return np.where((np.abs(exact) < least) & (np.abs(stored) <= least), stored, found)

    found = compare_blob(subject, Blob(a.shape, np.dtype(np.float16), values), b)
    why = found.why or f"{a.dtype} against float16, compared after rounding to float16"
    return dataclasses.replace(found, why=why)


def _squeezed(blob: Blob) -> list[int]:
    """The shape without axes of extent one, which old files and other formats set elsewhere."""
    return [extent for extent in blob.shape if extent != 1]


def _common(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Two arrays in one type: float32 where theirs differ, which every tool for Caffe computes in."""
    if a.dtype == b.dtype:
        return a, b, ""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        x, y = (array.astype(np.float32) for array in (a, b))
    return x, y, f"{a.dtype} against {b.dtype}, compared as float32"


def compare_readers(files: Files, names: tuple[str, ...] | None) -> tuple[Loaded, list[WeightsResult], list[str]]:
    """Read a file with every reader, and compare each with the first.

    Args:
        files: The model.
        names: Readers to use; ``None`` for all that work here.

    Returns:
        What the first reader delivered, a result per further reader, and remarks.

    Raises:
        BridgeError: The first reader cannot read the file, or one that was asked for cannot.
    """
    fit = readers.readers_of(files.weights)
    python = dict(files.options).get("python")
    chosen = list(names) if names is not None else [name for name in fit if readers.status(name, python=python).works]
    first = chosen[0] if chosen else "auto"
    loaded = files.read(first)
    first = loaded.raw.reader or first
    ours = stored_parts(loaded)
    results, remarks = [], []
    if names is None:
        for name in fit:
            state = readers.status(name, python=python)
            if not state.works:
                remarks.append(f"reader {name} was not used: {state.problem.removeprefix(f'{name}: ')}")
    for name in chosen[1:]:
        try:
            other = files.read(name)
        except BridgeError as error:
            if names is not None:
                raise
            results.append(WeightsResult(first, name, why=str(error.args[0])))
            continue
        theirs = stored_parts(other)
        pair = _with_gaps(ours, loaded, theirs), _with_gaps(theirs, other, ours)
        results.append(compare_weights(*pair, (first, name)))
    return loaded, results, remarks


def _with_gaps(mine: StoredParts, loaded: Loaded, theirs: StoredParts) -> StoredParts:
    """What a reader delivered, with the layers that it leaves out because the net has not got them."""
    if not loaded.raw.partial:
        return mine
    why = "delivers no layer that its net has not"
    names = {key[0] for key in mine}
    lacking = {key[:2]: part for key, part in theirs.items() if key[0] not in names}
    return {**mine, **{(*key, -1): StoredPart(part.layer, part.type, "", None, why) for key, part in lacking.items()}}
