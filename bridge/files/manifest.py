"""Texts beside the arrays of a file, which make it a whole model.

Three texts stand in the file's metadata: ``bridge.version``; ``bridge.prototxt``, the
net's definition; and ``bridge.blobs``, a JSON list with one entry per blob::

    {"index": 3, "layer": "conv2", "role": "weight", "key": "conv2/weight", "shape": [256, 48, 5, 5]}

(in ONNX files ``key`` is called ``initializer``; ``"transposed": true`` says that the array
has the blob's two axes in the other order; and ``"value": 1.0`` in place of a key, that the
blob has that one value, as the layer's other arrays have taken in what it was). ``index`` counts the layers of the
definition, ``key`` names the array. Blobs of several layers that are one parameter have
one key. Keys are ``LAYER/ROLE``, with a number behind them where two would be the same,
so they serve people; only the list counts.

A file without these texts is read by its keys: ``LAYER/PART``, where PART is the blob's
index, its role, or its name in Chainer (``W``, ``b``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import FormatError
from bridge.layers import CaffeLayer, build_layer
from bridge.limits.budget import check_json, parse_json, shape_problem
from bridge.schema import Blob, Net, RawLayer, RawNet, count, times
from bridge.schema.message import Message

VERSION, PROTOTXT, BLOBS = "bridge.version", "bridge.prototxt", "bridge.blobs"
_DAMAGED = "the file is damaged, or was changed by another tool"
_LONGEST_KEY = 1000
_LARGEST = float(np.finfo(np.float32).max)

TEXTS = "__bridge__"
"""Name of the texts among the arrays of a NumPy archive: JSON in UTF-8 bytes (uint8)."""


@dataclass(frozen=True)
class StoredArray:
    """Where a blob of a net is stored.

    Attributes:
        index: The layer's place in the net.
        layer: The layer's name.
        role: The blob's role.
        key: Name of the array.
        blob: The blob.
    """

    index: int
    layer: str
    role: str
    key: str
    blob: Blob


def entries(net: Net) -> Iterator[StoredArray]:
    """Each blob of the net with the key of its array; shared parameters have one key."""
    keys: dict[int, str] = {}
    taken: dict[str, int] = {}
    for index, layer in enumerate(net.layers):
        for role, blob in layer.blobs.entries():
            key = keys.get(id(blob.origin))
            if key is None:
                key = keys[id(blob.origin)] = _unique(_printable(f"{layer.name}/{role}"), taken)
            yield StoredArray(index, layer.name, role, key, blob)


def arrays(listed: Iterable[StoredArray]) -> dict[str, Blob]:
    """The arrays to be stored, each once."""
    stored: dict[str, Blob] = {}
    for entry in listed:
        stored.setdefault(entry.key, entry.blob)
    return stored


def manifest_texts(net: Net, listed: Iterable[StoredArray]) -> dict[str, str]:
    """The three texts for a file that holds the net's blobs."""
    blobs = [
        {"index": entry.index, "layer": entry.layer, "role": entry.role, "key": entry.key, "shape": entry.blob.shape}
        for entry in listed
    ]
    return {
        VERSION: bridge.__version__,
        PROTOTXT: prototxt.format(net.to_message()),
        BLOBS: json.dumps(blobs, separators=(",", ":")),
    }


def restore(
    texts: Mapping[str, Any],
    stored: Mapping[str, Blob],
    definition: str | Path | None,
    *,
    source: str | Path,
    reader: str,
) -> RawNet:
    """The net of a file, by its texts if it has them, else by its keys.

    Args:
        texts: The file's metadata.
        stored: Its arrays.
        definition: A prototxt, which tells the order of a layer's parts where there are no texts.
        source: The file, for messages.
        reader: Name of the reader.

    Raises:
        FormatError: The texts do not fit the arrays.
    """
    if BLOBS not in texts:
        layers = _plain(stored, definition, str(source))
        return RawNet("", layers, source=str(source), reader=reader, complete=False)
    message = prototxt.parse(_text(texts.get(PROTOTXT, ""), f"{source}: {PROTOTXT}"), f"{source}: {PROTOTXT}")
    rest, definitions = upgrade_net(message)
    held: list[dict[str, Blob]] = [{} for _ in definitions]
    merged = [""] * len(definitions)
    text = _text(texts[BLOBS], f"{source}: {BLOBS}")
    for index, role, blob, own in _listed(text, stored, len(definitions), str(source)):
        held[index][role] = blob
        merged[index] = merged[index] if own else role
    layers = tuple(map(_layer, definitions, held, merged))
    notes = (*_merged(layers), *_unlisted(str(texts[BLOBS]), stored))
    return RawNet(rest.text("name"), layers, rest, str(source), reader, notes)


def _unlisted(listed: str, stored: Mapping[str, Blob]) -> tuple[str, ...]:
    """A note if the file has arrays that no blob is in; an ONNX file's constants belong to its graph."""
    found = json.loads(listed)
    if any("initializer" in entry for entry in found):
        return ()
    left = sorted(set(stored) - {entry.get("key") for entry in found})
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    names = ", ".join(f"'{name}'" for name in left[:3])
    return (f"the file has arrays that no blob of the net is in: {names}{more}",) if left else ()


def _text(value: Any, where: str) -> str:
    """A text of the file's metadata.

    Raises:
        FormatError: It is none: another type, or half of a character, which JSON can have and no encoding of text.
    """
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value if not char.isascii()):
        raise FormatError("is not text", where=where, hint=_DAMAGED)
    return value


def _merged(layers: Iterable[RawLayer]) -> tuple[str, ...]:
    """A note if layers have other blobs than before."""
    found = [layer for layer in layers if layer.reworked]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (f"layer '{found[0].name}'{more} ({found[0].type}): {found[0].reworked}",) if found else ()


def _layer(definition: Message, held: dict[str, Blob], merged: str = "") -> RawLayer:
    """The layer with its blobs in Caffe's order, if all of them are in the file."""
    name, kind = definition.text("name"), definition.text("type")
    layer = build_layer(definition)
    typed = isinstance(layer, CaffeLayer) and layer.roles(len(held))
    numbered = [f"blob{index}" for index in range(len(held))]
    # A known layer with another number of blobs than its type has came without roles.
    roles = numbered if set(numbered) == set(held) else typed or numbered
    if set(roles) != set(held):
        found = f"only {', '.join(held)}" if held else "none"
        return RawLayer(name, kind, definition, (), f"of its blobs the file has {found}")
    reworked = f"the export merged its {merged} into the other blobs; it computes the same" if merged else ""
    return RawLayer(name, kind, definition, tuple(held[role] for role in roles), reworked=reworked)


def _listed(text: str, stored: Mapping[str, Blob], layers: int, source: str) -> Iterator[tuple[int, str, Blob, bool]]:
    """Index, role and blob of each entry, and whether the blob is unchanged since it was written."""
    where = f"{source}: {BLOBS}"
    if problem := check_json(text.encode("utf-8", "surrogatepass"), len(text)):
        raise FormatError(problem, where=where, hint=_DAMAGED)
    try:
        listed = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {error}", where=where, hint=_DAMAGED) from None
    if not isinstance(listed, list):
        raise FormatError("is no list", expected="a list of blobs", where=where, hint=_DAMAGED)
    for number, entry in enumerate(listed):
        yield _blob(entry, stored, layers, f"{where}[{number}]")


def _blob(entry: Any, stored: Mapping[str, Blob], layers: int, where: str) -> tuple[int, str, Blob, bool]:
    match entry:
        case {"index": int(index), "role": str(role), "value": int() | float() as value} if 0 <= index < layers:
            if abs(value) > _LARGEST:
                raise FormatError("the value does not fit float32", where=where, hint=_DAMAGED)
            return index, role, Blob.of(np.full(1, value, np.float32)), False
        case {"index": int(index), "role": str(role), "shape": [*shape]} if 0 <= index < layers:
            key = str(entry.get("key", entry.get("initializer")))
        case _:
            expected = f"index (below {layers}), role, key and shape"
            raise FormatError("does not name an array", expected=expected, where=where, hint=_DAMAGED)
    if key not in stored:
        raise FormatError(f"the file has no array '{key}'", where=where, hint=_DAMAGED)
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise FormatError(f"{shape} is not a shape", where=where, hint=_DAMAGED)
    if problem := shape_problem(shape):
        raise FormatError(problem, where=where, hint=_DAMAGED)
    blob = stored[key]
    if count(shape) != blob.size:
        raise FormatError(
            f"array '{key}' has {blob.size} values",
            expected=f"{count(shape)} = {times(shape)}",
            where=where,
            hint=_DAMAGED,
        )
    if entry.get("transposed") is True and len(blob.shape) == 2:
        blob = _transposed(blob)
    return index, role, blob.reshaped(shape), True


def _transposed(blob: Blob) -> Blob:
    return Blob(blob.shape[::-1], blob.dtype, lambda: blob.numpy().T)


# -- files without the texts ---------------------------------------------------------------


def _plain(stored: Mapping[str, Blob], definition: str | Path | None, source: str) -> tuple[RawLayer, ...]:
    known = {} if definition is None else _definitions(definition)
    layers: dict[str, dict[str, Blob]] = {}
    for key, blob in stored.items():
        name, _, part = key.rpartition("/" if "/" in key else ".")
        layers.setdefault(name, {})[part] = blob
    return tuple(_plain_layer(name, parts, known.get(name), source) for name, parts in layers.items())


def _definitions(path: str | Path) -> dict[str, Message]:
    return {layer.text("name"): layer for layer in upgrade_net(prototxt.parse_file(path))[1]}


def _plain_layer(name: str, parts: dict[str, Blob], definition: Message | None, source: str) -> RawLayer:
    order = _order(list(parts), definition)
    if sorted(order) != sorted(parts):
        raise FormatError(
            f"layer '{name}' has arrays {', '.join(parts)}",
            expected=f"{', '.join(order)}",
            where=source,
            hint="name them by role, or by index from 0 on",
        )
    made = definition or Message(source, name=name)
    return RawLayer(name, made.text("type"), made, tuple(parts[part] for part in order))


def _order(parts: list[str], definition: Message | None) -> list[str]:
    """The parts of a layer in Caffe's order: by index, by the roles of its type, or else as in the file."""
    if all(part.isdecimal() and part.isascii() for part in parts):
        return [str(index) for index in range(len(parts))]
    layer = build_layer(definition) if definition is not None else None
    if not isinstance(layer, CaffeLayer):
        return parts
    names = [(role, layer.chainer_params.get(role, role)) for role in layer.roles(len(parts))]
    return [next((name for name in pair if name in parts), pair[0]) for pair in names]


def _unique(key: str, taken: dict[str, int]) -> str:
    """The key, or with the lowest free number behind it; ``taken`` holds for each key the last number tried."""
    chosen, number = key, taken.get(key, 0)
    while chosen in taken:
        number += 1
        chosen = f"{key}#{number + 1}"
    taken[key] = number
    taken.setdefault(chosen, 0)
    return chosen


def _printable(key: str) -> str:
    """A key for people: no longer than any container's names may be, and without what a terminal would obey."""
    return "".join(char if char.isprintable() else "_" for char in key[:_LONGEST_KEY])
