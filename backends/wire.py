"""Protocol buffers' wire format, walked in place over a memory map.

Nothing is copied and nothing is trusted: every tag, varint and length is checked
against the message it stands in, and an error says the byte and the path of fields.

Source: the protocol buffers encoding specification.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bridge.caffe_files import nans
from bridge.caffe_files.proto import Field, Schema
from bridge.caffe_files.varint import LONGEST, read_varint
from bridge.errors import FormatError
from bridge.limits.budget import fields
from bridge.limits.sources import Stamp, check_unchanged, open_file, stamp_of
from bridge.schema.message import Fixed32, Fixed64, Group, Message, Symbol, Value

VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = range(6)
_WIDTH = {FIXED32: 4, FIXED64: 8}
_DAMAGED = "the file is damaged; fetch it again and compare its checksum"
_TRUNCATED = "the file looks truncated; compare its size with the original"
MAX_MESSAGE_DEPTH = 64
"""Groups nested deeper than this are refused; messages nest only as deep as the schema."""
_MESSAGE_COST = 8
_LAYER_FIELDS = 64
"""So many fields, or as many as it has bytes, a layer with a name and a type may have beside those of the file."""
_LAYERS_FIELDS = 1 << 20
"""All layers of a file together: enough for 20,000."""
LONGEST_TEXT = 1 << 20
"""Longer names and texts are refused; a net's longest are a few kilobytes."""

FieldExtent: TypeAlias = "tuple[int, int, int, int]"


class FileBytes:
    """The bytes of a file, mapped into memory.

    The map lives as long as an array or a span refers to it. ``left`` counts down with
    each field that is visited, so that a small hostile file cannot cost much more
    memory or time than its size: a real net has far fewer fields than this allows.

    Args:
        buffer: The bytes.
        name: What messages call the file.
        stamp: What the file was when it was mapped.
    """

    __slots__ = ("buffer", "left", "left_of_layers", "name", "size", "stamp")

    def __init__(self, buffer: bytes | mmap.mmap, name: str, stamp: Stamp | None = None) -> None:
        self.buffer = buffer
        self.name = name
        self.size = len(buffer)
        self.stamp = stamp
        self.left = fields(self.size)
        self.left_of_layers = _LAYERS_FIELDS

    @classmethod
    def open(cls, path: str | Path) -> FileBytes:
        """Map a file.

        Raises:
            MissingFileError: It cannot be opened, or is no regular file.
        """
        with open_file(path) as file:
            stamp = stamp_of(file)
            # An empty file cannot be mapped.
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if stamp.size else b""
            return cls(buffer, str(path), stamp)

    def check(self) -> None:
        """Demand that the file still is what it was when it was mapped.

        Raises:
            ChangedError: It was written to, or cut short.
        """
        if self.stamp is not None:
            check_unchanged(self.name, self.stamp)

    def error(self, at: int, message: str, hint: str = _DAMAGED, expected: str = "") -> FormatError:
        """An error that names the file and the byte."""
        return FormatError(message, where=f"{self.name}: byte {at}", expected=expected, hint=hint)


class Span:
    """The bytes of one message in a file.

    Args:
        source: The file.
        start: Its first byte.
        end: The byte after its last.
        schema: Its type.
        path: What messages call it, such as ``NetParameter.layer[7]``.
    """

    __slots__ = ("end", "path", "schema", "source", "start")

    def __init__(self, source: FileBytes, start: int, end: int, schema: Schema, path: str) -> None:
        self.source = source
        self.start = start
        self.end = end
        self.schema = schema
        self.path = path

    def fields(self) -> Iterator[FieldExtent]:
        """Each field as (number, wire type, a, b), checked to lie inside the message.

        For a varint, ``a`` is its value and ``b`` the byte after it; else the payload is
        the bytes from ``a`` up to ``b``. Values of fixed width that follow each other
        under one tag of one byte come as one field, in which they are a width and a
        byte apart. A group's extent ends with its last tag.
        """
        at, end = self.start, self.end
        while at < end:
            tag_at = at
            self.spend(at)
            tag, at = self.varint(at, tag_at)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise self.error(tag_at, f"field number {number}", expected=f"1 to {(1 << 29) - 1}")
            if wire == VARINT:
                value, at = self.varint(at, tag_at, number)
                yield number, wire, value, at
            else:
                start, at = self._extent(number, wire, tag_at, at)
                yield number, wire, start, at

    def _extent(self, number: int, wire: int, tag_at: int, at: int) -> tuple[int, int]:
        """First byte of a field's payload, and the byte after it."""
        if wire == LENGTH:
            length, at = self.varint(at, tag_at, number)
        elif wire in _WIDTH:
            length = _WIDTH[wire]
        elif wire == GROUP:
            return at, self._skip_group(number, at)
        else:
            if wire == GROUP_END:
                raise self.error(tag_at, "end of a group that did not start", number=number)
            raise self.error(tag_at, f"wire type {wire}", number=number, expected="0 to 5")
        if at + length > self.end:
            raise self._overrun(number, tag_at, at, length)
        if wire != LENGTH and at == tag_at + 1:
            return at, _run(self.source.buffer, tag_at, at, self.end, length)
        return at, at + length

    def spend(self, at: int, cost: int = 1) -> None:
        """Count what a field or value will take in memory, in units of some 250 bytes.

        Raises:
            FormatError: There are more than any net has.
        """
        self.source.left -= cost
        if self.source.left < 0:
            raise self.error(at, "more fields than a net can have", "this is no model, or it is damaged")

    def refund(self, left: int) -> None:
        """Count the fields of this message, a layer, as those of a net of many layers.

        Args:
            left: What was left in the file before the layer was read.
        """
        source = self.source
        spent = min(left - source.left, _LAYER_FIELDS, self.end - self.start, source.left_of_layers)
        source.left += spent
        source.left_of_layers -= spent

    def varint(self, at: int, field_at: int, number: int = 0) -> tuple[int, int]:
        """The varint at a byte, and the byte after it."""
        buffer = self.source.buffer
        if at < self.end and buffer[at] < 128:
            return buffer[at], at + 1
        value, after = read_varint(buffer, at, self.end)
        if after:
            return value, after
        if self.end - at >= LONGEST:
            raise self.error(field_at, f"varint of more than {LONGEST} bytes", number=number)
        raise self._overrun(number, field_at, at, 1 + self.end - at)

    def child(self, name: str, start: int, end: int, schema: Schema) -> Span:
        """The message in one of this message's fields."""
        self.spend(start, _MESSAGE_COST)
        return Span(self.source, start, end, schema, f"{self.path}.{name}")

    def error(self, at: int, message: str, hint: str = _DAMAGED, number: int = 0, expected: str = "") -> FormatError:
        """An error about the field that begins at a byte."""
        path = f"{self.path}.{self._label(number, at)}" if number else self.path
        return self.source.error(at, f"{path}: {message}", hint, expected)

    def _label(self, number: int, at: int) -> str:
        """A field's name, with its index if it is repeated."""
        field = self.schema.by_number.get(number)
        if field is None:
            return f"field {number}"
        if not field.repeated or field.kind != "message":
            return field.name
        before = Span(FileBytes(self.source.buffer, ""), self.start, at, self.schema, "")
        return f"{field.name}[{sum(entry[0] == number for entry in before.fields())}]"

    def _overrun(self, number: int, field_at: int, at: int, length: int) -> FormatError:
        """The error about a length that leaves its message, as deep in the message as it shows."""
        over = at + length - self.end
        bytes_past = f"{over} byte{'s' if over > 1 else ''} past the end of"
        if self.end < self.source.size:
            return self.error(field_at, f"length {length} runs {bytes_past} it", number=number)
        field = self.schema.by_number.get(number)
        if field is not None and field.kind == "message" and length > self.end - at >= 0:
            inner = self.child(self._label(number, field_at), at, self.end, self.schema.inner(field))
            try:
                for _ in inner.fields():
                    pass
            except FormatError as error:
                return error
        return self.error(field_at, f"length {length} runs {bytes_past} file", _TRUNCATED, number)

    def _skip_group(self, number: int, at: int) -> int:
        """The byte after the group that has just begun; its content is of no use here."""
        open_groups = [number]
        while open_groups:
            tag_at = at
            if at >= self.end:
                raise self.error(at, f"group {open_groups[-1]} does not end")
            self.spend(at)
            tag, at = self.varint(at, tag_at)
            number, wire = tag >> 3, tag & 7
            if wire == GROUP:
                open_groups.append(number)
                if len(open_groups) > MAX_MESSAGE_DEPTH:
                    raise self.error(tag_at, f"groups nested deeper than {MAX_MESSAGE_DEPTH}")
            elif wire == GROUP_END:
                if open_groups.pop() != number:
                    raise self.error(tag_at, f"end of group {number}, which did not start")
            elif wire == VARINT:
                _, at = self.varint(at, tag_at)
            else:
                _, at = self._extent(number, wire, tag_at, at)
        return at


def _run(buffer: bytes | mmap.mmap, tag_at: int, at: int, end: int, width: int) -> int:
    """The byte after the values of fixed width, each under the tag of the first, that begin at ``at``."""
    tag, step = buffer[tag_at], width + 1
    stop = at + width
    if stop + step > end or buffer[stop] != tag:
        return stop
    room = (end - stop) // step
    tags = np.frombuffer(buffer, np.uint8, room * step, stop)[::step]
    look, seen = 64, 0
    while seen < room:
        other = np.flatnonzero(tags[seen : seen + look] != tag)
        if other.size:
            return stop + (seen + int(other[0])) * step
        seen, look = min(seen + look, room), min(look * 2, 1 << 20)
    return stop + room * step


# -- messages ------------------------------------------------------------------------------


def decode(span: Span) -> Message:
    """Read a message by its schema.

    Fields that the schema does not have, or has with another wire type, are kept under
    their numbers: integers, bytes, or the bytes of a fixed width or a group.

    Raises:
        FormatError: The bytes are not wire format.
    """
    message = Message(span.source.name)
    for entry in span.fields():
        put(message, span, span.schema.at(entry[0], entry[1]), entry)
    return message


def put(message: Message, span: Span, field: Field | None, entry: FieldExtent) -> None:
    """Add to a message one field that was met in its span, as the schema has it."""
    number, wire, a, b = entry
    values = _values(span, field, wire, a, b, message) if field is not None else None
    if field is None or values is None:
        for value in unknown(span, wire, a, b):
            message.add(str(number), value)
        return
    for value in values:
        message.add(field.name, value)


def unknown(span: Span, wire: int, a: int, b: int) -> list[Value]:
    """The value of a field of which only the wire type is known."""
    if wire == VARINT:
        return [signed(a)]
    if wire == LENGTH:
        return [span.source.buffer[a:b]]
    if wire == GROUP:
        return [Group(span.source.buffer[a:b])]
    kind, width = (Fixed32, 4) if wire == FIXED32 else (Fixed64, 8)
    values: list[Value] = []
    for at in range(a, b, width + 1):
        span.spend(at)
        values.append(kind.from_bytes(span.source.buffer[at : at + width], "little"))
    return values


def _values(span: Span, field: Field, wire: int, a: int, b: int, message: Message) -> list[Value] | None:
    """The values of a known field; nothing where the wire type does not go with it."""
    kind = field.kind
    if not field.written_as(wire):
        return None
    if kind == "message":
        label = f"{field.name}[{len(message.all(field.name))}]" if field.repeated else field.name
        return [decode(span.child(label, a, b, span.schema.inner(field)))]
    if kind in ("string", "bytes"):
        return [_text(span, field, a, b)]
    if kind in ("float", "double"):
        width = 4 if kind == "float" else 8
        if wire == LENGTH:
            return list(_floats(span, a, b, width, 0, field.number))
        return list(_floats(span, a, b, width, 1))
    if wire == VARINT:
        return [_integer(field, a)]
    return [_integer(field, value) for value in varints(span, a, b)]


def varints(span: Span, a: int, b: int) -> Iterator[int]:
    """The varints of a packed field."""
    part = Span(span.source, a, b, span.schema, span.path)
    while a < b:
        span.spend(a)
        value, a = part.varint(a, a)
        yield value


def _integer(field: Field, value: int) -> Value:
    if field.kind == "bool":
        return bool(value)
    if field.kind == "uint":
        return value
    value = signed(value)
    return Symbol(field.symbols[value]) if value in field.symbols else value


def signed(value: int) -> int:
    """A varint as the signed number it stands for."""
    return value - (1 << 64) if value >> 63 else value


def _text(span: Span, field: Field, a: int, b: int) -> Value:
    if b - a > LONGEST_TEXT:
        raise span.error(a, f"{field.name} of {b - a} bytes, more than {LONGEST_TEXT}")
    data = span.source.buffer[a:b]
    if field.kind == "bytes":
        return data
    if not data.isascii():  # such a text can take four bytes of memory for each of the file's
        span.spend(a, len(data) // 50)
    return data.decode("utf-8", "surrogateescape")


def _floats(span: Span, a: int, b: int, width: int, gap: int, number: int = 0) -> Iterator[float]:
    """Floats that lie ``gap`` bytes apart."""
    if not gap and (b - a) % width:
        raise span.error(a, f"length {b - a} is not a multiple of {width}", number=number)
    for at in range(a, b, width + gap):
        span.spend(at)
        data = span.source.buffer[at : at + width]
        yield _float32(data) if width == 4 else struct.unpack("<d", data)[0]


@lru_cache(maxsize=1024)
def _float32(data: bytes) -> float:
    """The decimal number of fewest digits that is this float32, which is what a prototxt says."""
    value = np.frombuffer(data, "<f4")[0]
    return nans.float64_of(data) if value != value else float(str(value))
