"""Varints, the whole numbers of protocol buffers: seven bits a byte, the lowest first.

Source: the protocol buffers encoding specification, "Base 128 Varints".
"""

from __future__ import annotations

from typing import Protocol

LONGEST = 10
"""Bytes of a varint of 64 bits."""
_MASK = (1 << 64) - 1


class Bytes(Protocol):
    """Bytes, a view of them, or a mapped file."""

    def __getitem__(self, place: int, /) -> int: ...


def read_varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at a byte.

    Args:
        data: The bytes.
        at: Where it begins.
        end: Where the message ends.

    Returns:
        Its value, of which 64 bits count, and the byte after it; 0 in place of the latter if the varint does not
        end within the message, or takes more than :data:`LONGEST` bytes.
    """
    value = shift = 0
    for place in range(at, min(at + LONGEST, end)):
        byte = data[place]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, place + 1
        shift += 7
    return value & _MASK, 0


def varint(value: int) -> bytes:
    """A whole number as a varint, a negative one in two's complement of 64 bits.

    For example 300 becomes the bytes 0xAC 0x02.
    """
    value &= _MASK
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
