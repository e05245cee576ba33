"""What Caffe refuses in a net's definition, found before anybody asks for a shape.

Source: ``Net::Init`` and ``Net::AppendTop`` in net.cpp; protocol buffers' text format; upgrade_proto.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bridge.caffe_files.fields import known_as
from bridge.caffe_files.proto import variants
from bridge.errors import FormatError
from bridge.schema import Layer, Net
from bridge.schema.flow import BlobValue
from bridge.schema.message import Message, Symbol

_SOLVER = frozenset({"base_lr", "lr_policy", "max_iter", "solver_mode", "train_net", "net_param", "test_iter", "net"})


def check_definition(definition: Message) -> None:
    """Refuse a prototxt that is no net, or that Caffe does not read.

    Args:
        definition: The file as parsed.

    Raises:
        FormatError: It is a solver's file, or has layers in both forms or in a mixture, or nothing that a net has.
    """
    names = set(definition.names())
    if len(names & _SOLVER) > 1 or (names & _SOLVER and not names & {"layer", "layers"}):
        net = definition.text("net") or definition.text("train_net")
        hint = f"give the net that it names: {net}" if net else "give the net's own prototxt"
        raise FormatError("is a solver's file", expected="a net", where=definition.where, hint=hint)
    if {"layer", "layers"} <= names:
        first = definition.messages("layer")[:1] or [Message()]
        raise FormatError(
            f"has both 'layers' and 'layer', of which Caffe drops the second ('{first[0].text('name')}' and others)",
            where=definition.where,
            hint="write all of them in one form: 'layer { type: \"Convolution\" }' or 'layers { type: CONVOLUTION }'",
        )
    for layer in definition.messages("layers"):
        kind = layer.get("type")
        if isinstance(kind, str) and not isinstance(kind, Symbol):
            raise FormatError(
                f"'layers' with type: \"{kind}\", expected a name without quotation marks, such as CONVOLUTION",
                where=definition.where,
                subject=f"layer '{layer.text('name')}'",
                hint="write 'layer' in place of 'layers'",
            )
    if names and not names & {"layer", "layers", *variants("NetParameter")}:
        raise FormatError(
            f"has fields {', '.join(sorted(names)[:3])}, and none that a net has", where=definition.where,
            hint="expected 'name', 'input' and 'layer { ... }'",
        )  # fmt: skip


def check_layers(layers: Sequence[Message]) -> None:
    """Refuse fields that stand more often than protocol buffers allow.

    Args:
        layers: The layers of a prototxt in V2 form.

    Raises:
        FormatError: A field that holds one value has more; names the layer and the field.
    """
    for layer in layers:
        for path, times in _repeats(layer, ()):
            where = ": ".join(part for part in (layer.where, f"layer '{layer.text('name')}'") if part)
            raise FormatError(f"'{path}' is given {times} times", expected="once", where=where)


def _repeats(message: Message, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for name in message.names():
        values = message.all(name)
        known = known_as((*path, name)).values()
        if len(values) > 1 and known and not any(field.repeated for field in known):
            yield ".".join((*path, name)), len(values)
        for inner in message.messages(name) if known else ():
            yield from _repeats(inner, (*path, name))


def check_tops(net: Net) -> None:
    """Refuse two layers that write one blob, of which the second does not work in place, or not on it alone.

    Caffe gives each reader of a value a copy of its own, under another name; so a layer that shares its bottom with
    another reader does not work in place on it.

    Args:
        net: The net, for one phase.

    Raises:
        FormatError: There are such layers; names both.
    """
    writers: dict[str, Layer] = {}
    reads = Counter(value for values in net.flow.reads for value in values)
    for index, layer in enumerate(net.layers):
        for place, top in enumerate(layer.tops):
            if layer.bottoms[place : place + 1] == (top,):
                _check_alone(net, index, place, reads)
            if top in writers and layer.bottoms[place : place + 1] != (top,):
                first = writers[top].label if writers[top] is not layer else "itself"
                raise FormatError(
                    f"writes blob '{top}', which {first} writes too, and does not work in place on it",
                    where=net.where,
                    subject=layer.label,
                    hint="give the top another name, or the bottom the same one",
                )
            writers[top] = layer


def _check_alone(net: Net, index: int, place: int, reads: Counter[BlobValue]) -> None:
    """Refuse a layer in place on a value that is read elsewhere, too."""
    layer, value = net.layers[index], net.flow.reads[index][place]
    if reads[value] > 1:
        others = [i for i, values in enumerate(net.flow.reads) if value in values and i != index]
        reader = net.layers[others[0]].label if others else "itself once more"
        raise FormatError(
            f"works in place on blob '{layer.tops[place]}', which is read by {reader}, too",
            where=net.where,
            subject=layer.label,
            hint="give the top another name",
        )
