"""Reader of the ONNX files that ``bridge export`` writes.

The net's definition, and which initializer holds which blob, stand in the model's
metadata. The file is walked as bytes: arrays are views into the memory map, models of
any size open at once, and the ``onnx`` package is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends.mapped import mapped_blob
from backends.wire import LENGTH, VARINT, FileBytes, Span, varints
from bridge.caffe_files.proto import Field, Schema
from bridge.errors import FormatError
from bridge.files.manifest import BLOBS, restore
from bridge.limits.sources import inside
from bridge.schema import Blob, RawNet

_NAMES = {
    "ModelProto": {7: "graph", 14: "metadata_props"},
    "GraphProto": {5: "initializer"},
    "TensorProto": {1: "dims", 2: "data_type", 8: "name", 9: "raw_data", 13: "external_data", 14: "data_location"},
    "StringStringEntryProto": {1: "key", 2: "value"},
}
_REPEATED = {"metadata_props", "initializer", "external_data"}
_DTYPES = {1: "<f4", 10: "<f2", 11: "<f8"}
"""TensorProto.DataType of the types that blobs have."""
_EXTERNAL = 1


def read(path: str | Path, *, prototxt: str | Path | None = None) -> RawNet:
    """Read an ONNX file that the tool wrote.

    Args:
        path: The file; its external data, if it has some, in the same folder or below.
        prototxt: Not needed.

    Returns:
        The whole net. Blobs are as the file has them, float32 unless it was exported
        otherwise; a layer of which the graph had no use for a blob is not covered.

    Raises:
        MissingFileError: The file, or one with its external data, cannot be opened.
        FormatError: Another tool wrote it, or it is damaged.

    Source: onnx.proto ``ModelProto``, ``TensorProto``; ONNX's ExternalData.md.
    """
    source = FileBytes.open(path)
    model = Span(source, 0, source.size, _schema("ModelProto"), "ModelProto")
    texts: dict[str, str] = {}
    blobs: dict[str, Blob] = {}
    files = _Files(source)
    for name, _, a, b in _fields(model):
        if name == "metadata_props":
            texts.update([_pair(model.child(name, a, b, _schema("StringStringEntryProto")))])
        elif name == "graph":
            blobs.update(_initializers(model.child(name, a, b, _schema("GraphProto")), files))
    if BLOBS not in texts:
        hint = "only what 'bridge export' wrote can be read back"
        raise FormatError("holds no definition of a Caffe net", where=str(path), hint=hint)
    return restore(texts, blobs, prototxt, source=path, reader="onnx")


def _schema(name: str) -> Schema:
    fields = {
        number: Field(number, field, "bytes", field in _REPEATED, False, "", {})
        for number, field in _NAMES[name].items()
    }
    return Schema(name, fields, {field.name: field for field in fields.values()})


def _fields(span: Span) -> Iterator[tuple[str, int, int, int]]:
    """Name, wire type and payload of the fields that are of use here."""
    for number, wire, a, b in span.fields():
        field = span.schema.by_number.get(number)
        if field is not None:
            yield field.name, wire, a, b


def _bytes(span: Span, a: int, b: int) -> str:
    return bytes(span.source.buffer[a:b]).decode("utf-8", "surrogateescape")


def _pair(span: Span) -> tuple[str, str]:
    found = {name: _bytes(span, a, b) for name, wire, a, b in _fields(span) if wire == LENGTH}
    return found.get("key", ""), found.get("value", "")


def _initializers(graph: Span, files: _Files) -> Iterator[tuple[str, Blob]]:
    entry = _schema("TensorProto")
    count = 0
    for _, wire, a, b in _fields(graph):
        if wire == LENGTH:
            tensor = _Tensor(graph.child(f"initializer[{count}]", a, b, entry))
            count += 1
            if tensor.data_type in _DTYPES:
                yield tensor.name, tensor.blob(files)


class _Tensor:
    """A ``TensorProto``, its values left where they are."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.name, self.data_type, self.location = "", 0, 0
        self.dims: list[int] = []
        self.raw: tuple[int, int] | None = None
        self.external: dict[str, str] = {}
        for name, wire, a, b in _fields(span):
            if name == "dims":
                self.dims += [a] if wire == VARINT else varints(span, a, b)
            elif name == "external_data" and wire == LENGTH:
                self.external.update([_pair(span.child(name, a, b, _schema("StringStringEntryProto")))])
            elif name == "raw_data" and wire == LENGTH:
                self.raw = a, b
            elif name == "name" and wire == LENGTH:
                self.name = _bytes(span, a, b)
            elif name == "data_type" and wire == VARINT:
                self.data_type = a
            elif name == "data_location" and wire == VARINT:
                self.location = a

    def blob(self, files: _Files) -> Blob:
        """The tensor as a blob."""
        dtype, what = _DTYPES[self.data_type], f"initializer '{self.name}'"
        if self.location == _EXTERNAL:
            source, start, stop = files.locate(self.external, self.span)
        elif self.raw is not None:
            source, (start, stop) = self.span.source, self.raw
        else:
            raise self.span.error(self.span.start, f"{what} has no raw_data, in which alone values are read")
        blob = mapped_blob(source, start, tuple(self.dims), dtype, what)
        if stop >= 0 and stop - start != blob.nbytes:
            raise source.error(start, f"{what} has {stop - start} bytes", expected=f"{blob.nbytes}")
        return blob


class _Files:
    """The files that external data lie in; none outside the model's own folder."""

    def __init__(self, model: FileBytes) -> None:
        self.folder = Path(model.name).resolve().parent
        self.open: dict[str, FileBytes] = {}

    def locate(self, entries: dict[str, str], span: Span) -> tuple[FileBytes, int, int]:
        """The file, the first byte, and the byte after the last or -1 where none is told."""
        name = entries.get("location", "")
        path = inside(self.folder, name, f"{span.source.name}: byte {span.start}: {span.path}")
        numbers: list[Any] = [entries.get("offset", "0"), entries.get("length", "-1")]
        try:
            offset, length = (int(number) for number in numbers)
        except ValueError:
            raise span.error(span.start, f"offset {numbers[0]} and length {numbers[1]} are no numbers") from None
        if name not in self.open:
            self.open[name] = FileBytes.open(path)
        size = self.open[name].size
        if not 0 <= offset <= size or not -1 <= length <= size:
            message = f"its external data begin at byte {offset} of {name}, which has {size}"
            raise span.error(span.start, message + (f", and have {length}" if "length" in entries else ""))
        return self.open[name], offset, offset + length if length >= 0 else -1
