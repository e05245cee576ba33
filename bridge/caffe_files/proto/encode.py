"""Messages to the bytes of protocol buffers.

Source: the protocol buffers encoding specification; caffe.proto for what is packed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

from bridge.caffe_files import nans
from bridge.caffe_files.proto import Field, dialects, fields_by_name, forks_of, schema
from bridge.caffe_files.varint import varint
from bridge.schema.message import Fixed32, Fixed64, Group, Message, Value

_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)
_WIRE = {"float": 5, "double": 1, "string": 2, "bytes": 2, "message": 2}
Drop = Callable[[str], None]
"""Told the path of each field that caffe.proto cannot say."""


def encode_layer(definition: Message, fork: str, drop: Drop) -> bytes:
    """A ``LayerParameter`` without its blobs.

    Args:
        definition: The layer; of fields that several forks number differently those of
            ``fork`` are taken first, then the first fork's that knows what is in them.
        fork: ``bvlc`` or one of :func:`bridge.caffe_files.proto.dialects`.
        drop: Told of what cannot be written.
    """
    own = schema("LayerParameter", forks_of(fork)).by_name
    fields = {}
    for name in definition.names():
        known = [own[name]] if name in own else []
        known += [other.by_name[name] for other in dialects().values() if name in other.by_name]
        fit = [field for field in known if _knows(field, definition.message(name), fork)]
        if known:
            fields[name] = (fit or known)[0]
    return encode(definition, fields, drop, fork)


def _knows(field: Field, message: Message, fork: str) -> bool:
    return field.kind != "message" or set(message.names()) <= set(fields_by_name(field.type, fork))


def encode(message: Message, fields: Mapping[str, Field], drop: Drop, fork: str = "bvlc", path: str = "") -> bytes:
    """A message as bytes.

    Args:
        message: The message; a field named by a number is written under that number.
        fields: The fields of its type, by name.
        drop: Told of what cannot be written.
        fork: Whose numbers the fields of messages within it get.
        path: Where the message stands in a larger one, for ``drop``.
    """
    parts = []
    for name in message.names():
        field, values = fields.get(name), message.all(name)
        try:
            if field is not None:
                parts.append(_field(field, values, drop, fork, f"{path}{name}."))
            else:
                parts.extend(_numbered(int(name), value) for value in values)
        except (ValueError, OverflowError):  # a name that is no number, or a value that does not fit the field
            drop(path + name)
    return b"".join(parts)


def _field(field: Field, values: Iterable[Value], drop: Drop, fork: str, path: str) -> bytes:
    coded = [_value(field, value, drop, fork, path) for value in values]
    if field.packed:
        return prefixed(field.number, b"".join(coded))
    wire = _WIRE.get(field.kind, _VARINT)
    return b"".join(
        prefixed(field.number, data) if wire == _LENGTH else field_tag(field.number, wire) + data for data in coded
    )


def _value(field: Field, value: Value, drop: Drop, fork: str, path: str) -> bytes:
    """One value without its tag; a ValueError if it is not of the field's kind."""
    if field.kind == "message" or isinstance(value, Message):
        if field.kind != "message" or not isinstance(value, Message):
            raise ValueError(f"{field.name} is a {field.kind}")
        return encode(value, fields_by_name(field.type, fork), drop, fork, path)
    if field.kind in ("string", "bytes"):
        return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return varint(_symbol(field, value))
    number = float(value)
    if field.kind == "float" and number != number:
        return nans.float32_bytes(number)
    if field.kind in ("float", "double"):
        return struct.pack("<f" if field.kind == "float" else "<d", number)
    if number != int(value) or not -(1 << 63) <= int(value) < 1 << 64:
        raise ValueError(f"{field.name} is a whole number of 64 bits")
    return varint(int(value))


def _symbol(field: Field, name: str) -> int:
    for number, symbol in field.symbols.items():
        if symbol == name:
            return number
    raise ValueError(f"{field.name} has no value {name}")


def _numbered(number: int, value: Value) -> bytes:
    """A field of which only the number is known, as the reader kept it."""
    if not 0 < number < 1 << 29:
        raise ValueError(f"no field has number {number}")
    if isinstance(value, Group):
        if not value.endswith(field_tag(number, _GROUP_END)):
            raise ValueError("a group without its end")
        return field_tag(number, _GROUP) + value
    if isinstance(value, bytes):
        return prefixed(number, value)
    if isinstance(value, Fixed32):
        return field_tag(number, _FIXED32) + value.to_bytes(4, "little")
    if isinstance(value, Fixed64):
        return field_tag(number, _FIXED64) + value.to_bytes(8, "little")
    if isinstance(value, float):
        return field_tag(number, _FIXED32) + struct.pack("<f", value)
    whole = int(str(value))
    if not -(1 << 63) <= whole < 1 << 64:
        raise ValueError(f"{whole} does not fit 64 bits")
    return field_tag(number, _VARINT) + varint(whole)


def field_tag(number: int, wire: int) -> bytes:
    """The tag of a field."""
    return varint(number << 3 | wire)


def prefixed(number: int, data: bytes) -> bytes:
    """A field of bytes, with tag and length."""
    return field_tag(number, _LENGTH) + varint(len(data)) + data
