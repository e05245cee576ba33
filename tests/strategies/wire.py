"""Caffemodels byte by byte: known fields with any bits, unknown fields of every wire type, in any order."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

from hypothesis import strategies as st

from bridge.caffe_files.proto import Field, schema
from tests import encode

BITS32 = st.sampled_from(
    [0x7FA00001, 0xFFC00000, 0x7FC00000, 0xFF800001, 0x7FFFFFFF, 0x80000000, 0, 1, 0x7F800000, 0x3DCCCCCD]
) | st.integers(0, 2**32 - 1)
"""Bits of a float32: NaNs that signal, with a sign or a payload, -0.0, a denormal, an infinity, 0.1, and any."""
BITS64 = st.sampled_from([0x7FF0000000000001, 0xFFF8000000000000, 1 << 63, 1]) | st.integers(0, 2**64 - 1)
UNKNOWN = range(50_000, 50_008)
"""Numbers that no known caffe.proto has."""
_LEFT_OUT = {"name", "type", "blobs", "layer", "layers", "include", "exclude", "state", "phase"}
"""Fields that say what a layer is and where it stands; the test writes or omits them itself."""


def unknown(numbers: Any = UNKNOWN) -> Any:
    """One field without a name, of any wire type."""
    number = st.sampled_from(numbers)
    varint = st.builds(encode.number, number, st.integers(0, 2**64 - 1))
    text = st.builds(encode.chunk, number, st.binary(max_size=9))
    narrow = st.builds(lambda n, bits: encode.tag(n, 5) + struct.pack("<I", bits), number, BITS32)
    wide = st.builds(lambda n, bits: encode.tag(n, 1) + struct.pack("<Q", bits), number, BITS64)
    group = st.builds(lambda n, inner: encode.tag(n, 3) + inner + encode.tag(n, 4), number, varint | narrow | text)
    return varint | text | narrow | wide | group


def scalar(field: Field) -> Any:
    """The bytes of one value of a known field, without its tag."""
    if field.kind == "float":
        return BITS32.map(lambda bits: struct.pack("<I", bits))
    if field.kind == "double":
        return BITS64.map(lambda bits: struct.pack("<Q", bits))
    if field.kind == "bool":
        return st.integers(0, 1).map(encode.varint)
    if field.kind == "enum":
        return st.sampled_from(sorted(field.symbols)).map(encode.varint)
    largest = 2**31 - 1
    return st.integers(0 if field.kind == "uint" else -largest, largest).map(encode.varint)


def known(field: Field, depth: int) -> Any:
    """All values of one known field, as Google's own writer writes them."""
    count: Any = {"min_size": 1, "max_size": 3 if field.repeated else 1}
    if field.kind == "message":
        inner = st.lists(message(field.type, depth - 1), **count)
        return inner.map(lambda parts: b"".join(encode.chunk(field.number, part) for part in parts))
    if field.kind in ("string", "bytes"):
        texts = st.binary(max_size=6) if field.kind == "bytes" else st.sampled_from([b"", b"a", b"\xd6\xd0", b'"\n'])
        return st.lists(texts, **count).map(lambda parts: b"".join(encode.chunk(field.number, p) for p in parts))
    values = st.lists(scalar(field), **count)
    if field.packed:
        return values.map(lambda parts: encode.chunk(field.number, b"".join(parts)))
    head = encode.tag(field.number, {"float": 5, "double": 1}.get(field.kind, 0))
    return values.map(lambda parts: b"".join(head + part for part in parts))


@cache
def message(name: str, depth: int = 1) -> Any:
    """A message of a type of caffe.proto: each field once or not at all, and fields that it has not among them."""
    fields = [field for field in schema(name).by_name.values() if field.name not in _LEFT_OUT]
    fields = [field for field in fields if depth > 0 or field.kind != "message"]
    one = unknown()
    if fields:
        picked = st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field.number)
        parts = picked.flatmap(lambda chosen: st.tuples(*(known(field, depth) for field in chosen)))
        return st.tuples(parts, st.lists(one, max_size=2)).flatmap(
            lambda both: st.permutations([*both[0], *both[1]]).map(b"".join)
        )
    return st.lists(one, max_size=2).map(b"".join)


def fields_of(data: bytes) -> list[tuple[int, bytes]]:
    """Each field's number and bytes, tag included; nothing is understood but where it ends."""
    found, at = [], 0
    while at < len(data):
        start, (tag, at) = at, _varint(data, at)
        at = _end(data, tag, at)
        found.append((tag >> 3, data[start:at]))
    return found


def _end(data: bytes, tag: int, at: int) -> int:
    wire = tag & 7
    if wire == 0:
        return _varint(data, at)[1]
    if wire == 2:
        length, at = _varint(data, at)
        return at + length
    if wire != 3:
        return at + {1: 8, 5: 4}[wire]
    inner, at = _varint(data, at)
    while inner != tag + 1:
        at = _end(data, inner, at)
        inner, at = _varint(data, at)
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def by_number(data: bytes, name: str) -> dict[int, list[Any]]:
    """A message's fields by number, each number's in the order of the file, as the specification orders them."""
    known_fields, found = schema(name).by_number, {}  # type: ignore[var-annotated]
    for number, part in fields_of(data):
        field = known_fields.get(number)
        inner: Any = part
        if field is not None and field.kind == "message" and part[0] & 7 == 2:
            _, at = _varint(part, 0)
            inner = by_number(part[_varint(part, at)[1] :], field.type)
        found.setdefault(number, []).append(inner)
    return found
