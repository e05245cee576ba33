"""Which layers a net has, in which order, and who reads what: what ``Net::Init`` settles before any shape is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.caffe_files.assemble import definitions_of
from bridge.errors import ModelError, nearest
from bridge.layers import REGISTRY
from bridge.layers.base import registered_name
from bridge.layers.loss import Loss
from bridge.layers.split import Split
from bridge.schema.message import Message

_Place = tuple[int, int]
AUTOMATIC = "(automatic)"
"""The name of a top that Caffe makes for a loss that names none."""


@dataclass
class Wiring:
    """The flow of blobs through a net.

    Attributes:
        name: The net's name.
        definitions: Each layer's ``LayerParameter``, Split layers among them.
        rest: The fields of the net itself.
        blob_names: Each blob, in the order in which layers first write them.
        bottoms, tops: For each layer, the numbers of its blobs.
        outputs: The numbers of the blobs that no layer reads, by name.
    """

    name: str
    definitions: list[Message]
    rest: Message
    blob_names: list[str] = field(default_factory=list)
    bottoms: list[list[int]] = field(default_factory=list)
    tops: list[list[int]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def wire(definition: Message, phase: str, level: int = 0, stages: Sequence[str] = ()) -> Wiring:
    """The wiring of a net for a phase.

    Args:
        definition: The ``NetParameter`` of any generation.
        phase: ``TRAIN`` or ``TEST``.
        level: The level of Caffe's ``NetState``.
        stages: Its stages.

    Raises:
        FormatError: The definition is no net.
        ModelError: A layer reads a blob that no earlier layer writes, or writes one that another wrote.

    Source: ``Net::FilterNet``, ``InsertSplits``, ``Net::AppendTop``, ``Net::AppendBottom``.
    """
    rest, layers = definitions_of(definition, phase, level, stages)
    wiring = Wiring(rest.text("name"), with_splits(layers), rest)
    known: dict[str, int] = {}
    unread: set[str] = set()
    for layer in wiring.definitions:
        bottoms = _names(layer, "bottom")
        wiring.bottoms.append([_bottom(layer, name, known, unread) for name in bottoms])
        wiring.tops.append([])
        for place, name in enumerate(_names(layer, "top")):
            in_place = place < len(bottoms) and bottoms[place] == name
            if not in_place:
                if name in known:
                    raise ModelError(f"writes blob '{name}', which an earlier layer writes", where=_label(layer))
                known[name] = len(wiring.blob_names)
                wiring.blob_names.append(name)
            wiring.tops[-1].append(known[name])
            unread.add(name)
        if makes_top(layer):
            wiring.tops[-1].append(len(wiring.blob_names))
            wiring.blob_names.append(AUTOMATIC)
    wiring.outputs = [known[name] for name in sorted(unread)]
    return wiring


def makes_top(layer: Message) -> bool:
    """Whether Caffe makes a top for a layer that names none. Source: ``Layer::AutoTopBlobs``."""
    kind = REGISTRY.get(registered_name(layer))
    return kind is not None and issubclass(kind, Loss) and not layer.all("top")


def _bottom(layer: Message, name: str, known: dict[str, int], unread: set[str]) -> int:
    if name not in known:
        hint = nearest(name, known)
        raise ModelError(f"reads blob '{name}', which no earlier layer writes", where=_label(layer), hint=hint)
    unread.discard(name)
    return known[name]


def with_splits(layers: Sequence[Message]) -> list[Message]:
    """The layers with a Split behind each top that several read, as readers and losses.

    Source: insert_splits.cpp.
    """
    readers, sources = _readers(layers)
    given: Counter[_Place] = Counter()
    result = []
    for index, layer in enumerate(layers):
        made = layer.copy()
        bottoms = _names(layer, "bottom")
        for place, name in enumerate(bottoms):
            source = sources.get((index, place))
            if source is not None and readers[source] > 1:
                bottoms[place] = _split_blob(layers[source[0]], name, source[1], given[source])
                given[source] += 1
        made.set("bottom", *bottoms)
        result.append(made)
        for place, name in enumerate(_names(layer, "top")):
            if readers[index, place] > 1:
                result.append(_split(layer, made, name, place, readers[index, place]))
                given[index, place] += _weight(layer, place) != 0
    return result


def _readers(layers: Sequence[Message]) -> tuple[Counter[_Place], dict[_Place, _Place]]:
    """How often each top is read, a loss weight being a reader; and the top that each bottom is."""
    readers: Counter[_Place] = Counter()
    sources: dict[_Place, _Place] = {}
    last: dict[str, _Place] = {}
    for index, layer in enumerate(layers):
        for place, name in enumerate(_names(layer, "bottom")):
            if name in last:
                sources[index, place] = last[name]
                readers[last[name]] += 1
        for place, name in enumerate(_names(layer, "top")):
            last[name] = (index, place)
            readers[index, place] += _weight(layer, place) != 0
    return readers, sources


def _split(layer: Message, made: Message, name: str, place: int, count: int) -> Message:
    """The Split of a top; the top's loss weight goes over to its first top."""
    split = Message(layer.where, name=_split_name(layer, name, place), type=Split.types[0], bottom=name)
    split.set("top", *(_split_blob(layer, name, place, number) for number in range(count)))
    if weight := _weight(layer, place):
        split.set("loss_weight", weight, *[0.0] * (count - 1))
        made.set("loss_weight")
    return split


def _split_name(layer: Message, blob: str, place: int) -> str:
    return f"{blob}_{layer.text('name')}_{place}_split"


def _split_blob(layer: Message, blob: str, place: int, number: int) -> str:
    return f"{_split_name(layer, blob, place)}_{number}"


def _weight(layer: Message, place: int) -> float:
    weights = layer.all("loss_weight")
    value = weights[place] if place < len(weights) else 0
    return float(value) if isinstance(value, (int, float)) else 0.0


def _names(layer: Message, field: str) -> list[str]:
    return [str(name) for name in layer.all(field)]


def _label(layer: Message) -> str:
    return f"layer '{layer.text('name')}' ({layer.text('type')})"
