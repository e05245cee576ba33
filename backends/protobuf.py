"""Reader of ``.caffemodel`` files, straight from their bytes.

Opening a file walks over its layers and leaves the values where they are: a blob's
array is a view into the memory map, made when it is asked for. Views are read-only, and
unaligned where the file has them so; ``numpy.require(array, requirements="A")`` copies
one only if it must.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from backends.stored import Stored
from backends.wire import LENGTH, FieldExtent, FileBytes, Span, put, unknown
from bridge.caffe_files import proto
from bridge.caffe_files.proto import FIRST_PARAM, param_field, schema, writers_of
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import FormatError
from bridge.files.sniff import HEAD, KINDS, identify
from bridge.layers.reading import read_messages
from bridge.schema import Blob, RawLayer, RawNet
from bridge.schema.message import Message


def read(path: str | Path, *, prototxt: str | Path | None = None, dialect: str = "auto") -> RawNet:
    """Read a caffemodel of any generation.

    Args:
        path: The file.
        prototxt: Not needed; a caffemodel holds its net's definition.
        dialect: The fork whose field numbers the layers' parameters have; ``auto`` finds it out as far as the
            file tells, ``bvlc`` is caffe.proto alone. Weights never depend on it.

    Returns:
        The net in Caffe's current form. Blobs are float32, float64 or float16 as stored,
        little-endian in the file and in host byte order as arrays.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is no caffemodel, or a damaged one; says which byte and field.

    Source: caffe.proto ``NetParameter``, Caffe's ``blob.cpp``.
    """
    source = _open(path, "caffemodel")
    forks = proto.forks_of(dialect)
    if dialect == "auto":
        forks = _writers(source, forks)
    reader = _Reader(forks)
    definition = reader.net(Span(source, 0, source.size, schema("NetParameter", forks), "NetParameter"))
    if "layers" in definition and "layer" in definition:
        reader.notes.append("has both 'layers' and 'layer'; like Caffe, only 'layers' is read")
    other = [stored for stored in reader.stored if stored.other]
    if other:
        fields = ", ".join(map(str, sorted(other[0].other)[:9]))
        reader.notes.append(f"{len(other)} blobs have fields that no known caffe.proto has ({fields}): not kept")
    rest, layers = upgrade_net(definition)
    return RawNet(
        name=rest.text("name"),
        layers=tuple(reader.layer_of(layer) for layer in layers),
        definition=rest,
        source=str(path),
        reader="protobuf",
        notes=tuple(reader.notes),
    )


def read_mean(path: str | Path) -> Blob:
    """Read a mean image, a ``.binaryproto`` file.

    Args:
        path: The file.

    Returns:
        The blob, usually of shape (1, channels, height, width), float32, in the channel
        order and scale of the images it was computed from (for Caffe's tools BGR, 0 to 255).

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is no mean image, or a damaged one.

    Source: caffe.proto ``BlobProto``.
    """
    source = _open(path, "binaryproto")
    return Stored(Span(source, 0, source.size, schema("BlobProto"), "BlobProto")).blob("mean")


def _open(path: str | Path, kind: str) -> FileBytes:
    source = FileBytes.open(path)
    found = KINDS[identify(source.buffer[:HEAD])]
    if found.name != kind:
        problem, expected = (found.problem, "") if found.problem else (f"holds {found.name}", f"a {kind}")
        hint = found.hint or "the reader is chosen by content if none is named"
        raise FormatError(problem, expected=expected, where=str(path), hint=hint)
    return source


def _writers(source: FileBytes, forks: tuple[str, ...]) -> tuple[str, ...]:
    """The forks that can have written a file, by the numbers of fields that not all of them have."""
    walked = FileBytes(source.buffer, source.name)
    net = Span(walked, 0, source.size, schema("NetParameter"), "NetParameter")
    with contextlib.suppress(FormatError):  # of a damaged file the reading itself says what is wrong, and where
        for number, wire, a, b in net.fields():
            field = net.schema.by_number.get(number)
            if field is None:
                forks = writers_of(forks, "NetParameter", number, wire)
            elif field.name == "layer" and wire == LENGTH:
                left, layer = walked.left, net.child("layer", a, b, schema(field.type))
                forks = _layer_writers(layer, forks)
                layer.refund(left)
    return forks


def _layer_writers(layer: Span, forks: tuple[str, ...]) -> tuple[str, ...]:
    """The same by the fields of one layer: by those that its type reads, and by NVCaffe's that are no messages."""
    kind = None
    for number, wire, a, b in layer.fields():
        kind = (a, b) if (number, wire) == (2, LENGTH) else kind
    names = read_messages(layer.source.buffer[slice(*kind)].decode("latin-1")) if kind else ()
    for number, wire, *_ in layer.fields():
        if number >= FIRST_PARAM and (names or wire != LENGTH):
            forks = writers_of(forks, "LayerParameter", number, wire, names if wire == LENGTH else ())
    return forks


class _Reader:
    """Decodes definitions; sets blobs aside, each replaced in the tree by its place in ``stored``."""

    def __init__(self, forks: tuple[str, ...]) -> None:
        self.forks = forks
        self.stored: list[Stored] = []
        self.notes: list[str] = []

    def net(self, span: Span) -> Message:
        message = Message(span.source.name)
        for entry in span.fields():
            field = span.schema.by_number.get(entry[0])
            if field is not None and field.name in ("layer", "layers") and entry[1] == LENGTH:
                label = f"{field.name}[{len(message.all(field.name))}]"
                message.add(field.name, self.layer(span.child(label, entry[2], entry[3], span.schema.inner(field))))
            else:
                put(message, span, field, entry)
        return message

    def layer(self, span: Span) -> Message:
        """A layer of any generation."""
        message, left = Message(span.source.name), span.source.left
        params: list[FieldExtent] = []
        for entry in span.fields():
            field = span.schema.by_number.get(entry[0])
            if field is not None and entry[1] == LENGTH and field.type == "BlobProto":
                label = f"blobs[{len(message.all('blobs'))}]"
                message.add("blobs", len(self.stored))
                self.stored.append(Stored(span.child(label, entry[2], entry[3], schema("BlobProto"))))
            elif field is not None and entry[1] == LENGTH and field.type == "V0LayerParameter":
                message.add("layer", self.layer(span.child("layer", entry[2], entry[3], span.schema.inner(field))))
            elif entry[0] < FIRST_PARAM and span.schema.name == "LayerParameter":
                put(message, span, field, entry)
            else:
                params.append(entry)
        for entry in params:
            self.param(message, span, entry)
        if message.get("name") and "type" in message:
            span.refund(left)
        return message

    def param(self, message: Message, span: Span, entry: FieldExtent) -> None:
        """A parameter; one that does not decode is kept as bytes, since weights do not depend on it."""
        field = span.schema.at(entry[0], entry[1])
        if span.schema.name == "LayerParameter":
            kind = message.text("type")
            field = param_field(self.forks, entry[0], kind, read_messages(kind))
        try:
            put(message, span, field, entry)
        except FormatError as error:
            if entry[1] != LENGTH:
                raise
            self.notes.append(f"{error.args[0]}; field {entry[0]} is kept as bytes (see --dialect)")
            for value in unknown(span, *entry[1:]):
                message.add(str(entry[0]), value)

    def layer_of(self, definition: Message) -> RawLayer:
        places = [place for place in definition.all("blobs") if isinstance(place, int)]
        definition.set("blobs")
        name, kind = definition.text("name"), definition.text("type")
        blobs = tuple(self.stored[place].blob(f"layer '{name}' ({kind}): blob {i}") for i, place in enumerate(places))
        return RawLayer(name, kind, definition, blobs)
