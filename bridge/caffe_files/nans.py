"""Not-a-numbers with all their bits: a sign, a signalling bit and a payload, which arithmetic and text do not keep.

A float32 of a file is held as Python's float, a float64. Processors set the quiet bit of a NaN that they convert,
and a prototxt has the one word ``nan``. Here the bits are moved as integers, and text has them in a comment:
``power: nan # 0x7ff4000020000000``. Caffe reads ``nan``, this package the bits.

Source: IEEE 754; the text format specification of protocol buffers.
"""

from __future__ import annotations

import re
import struct

_MORE = 29
"""Bits that a float64's mantissa has more than a float32's."""
_QUIET32 = 1 << 22
_PLAIN = 0x7FF8 << 48
_COMMENT = re.compile(r" # 0x([0-9a-f]{16})(?![^\n])")


def float64_of(data: bytes) -> float:
    """The NaN, as a float64, of a float32's four little-endian bytes; its payload stands in the upper bits."""
    (bits,) = struct.unpack("<I", data)
    return _float64(bits >> 31 << 63 | 0x7FF << 52 | (bits & 0x7FFFFF) << _MORE)


def float32_bytes(value: float) -> bytes:
    """Four little-endian bytes of the float32 with a NaN's sign and the upper bits of its payload."""
    bits = _bits(value)
    payload = bits >> _MORE & 0x7FFFFF
    return struct.pack("<I", bits >> 63 << 31 | 0xFF << 23 | (payload or _QUIET32))


def written(value: float) -> str:
    """A NaN as text: ``nan``, and the bits in a comment where they are not those that every reader makes of it."""
    bits = _bits(value)
    return "nan" if bits == _PLAIN else f"nan # 0x{bits:016x}"


def read(text: str, end: int) -> float:
    """The NaN whose word ends at a place of a text, with the bits of the comment behind it."""
    found = _COMMENT.match(text, end)
    value = _float64(int(found[1], 16)) if found else float("nan")
    return value if value != value else float("nan")


def _bits(value: float) -> int:
    bits: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return bits


def _float64(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value
