"""``Datum``: an image and its label as a database holds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.errors import FormatError
from bridge.schema import count, times
from bridge.sources.pictures import picture_of_bytes


@dataclass
class Datum:
    """One entry of a database.

    Attributes:
        shape: (channels, height, width); not used by encoded ones.
        data: The values as bytes, or the bytes of a picture file.
        label: The label.
        floats: The values as float32, where there are no bytes.
        encoded: Whether ``data`` is a picture file.
        where: The entry, for messages.

    Source: caffe.proto ``Datum``.
    """

    shape: tuple[int, int, int]
    data: bytes
    label: int
    floats: np.ndarray
    encoded: bool
    where: str

    def image(self, channels: int | None) -> np.ndarray:
        """The image.

        Args:
            channels: To how many channels an encoded one is decoded; ``None`` leaves it to the file.

        Returns:
            (C, H, W), uint8 or float32.

        Raises:
            FormatError: The values do not fill the shape, or are no picture.
        """
        if self.encoded:
            return picture_of_bytes(self.data, channels, self.where)
        values = np.frombuffer(self.data, np.uint8) if self.data else self.floats
        if values.size != count(self.shape):
            raise FormatError(f"has {values.size} values", expected=f"{times(self.shape)}", where=self.where)
        return values.reshape(self.shape)


def parse_datum(buffer: bytes, where: str) -> Datum:
    """The Datum in a database's value.

    Raises:
        FormatError: It is none, or cut off.
    """
    numbers = {1: 0, 2: 0, 3: 0, 5: 0, 7: 0}
    data, floats, at = b"", bytearray(), 0
    while at < len(buffer):
        tag, at = _varint(buffer, at, where)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(buffer, at, where)
            if number in numbers:
                numbers[number] = value
            continue
        if wire not in (1, 2, 5):
            raise FormatError(f"is no Datum: wire type {wire} at byte {at}", where=where)
        size, at = _varint(buffer, at, where) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        chunk = buffer[at : at + size]
        if len(chunk) < size:
            raise FormatError(f"ends in field {number}: {size} bytes at byte {at} of {len(buffer)}", where=where)
        at += size
        if number == 4 and wire == 2:
            data = chunk
        elif number == 6:
            floats += chunk
    if len(floats) % 4:
        raise FormatError("is no Datum: float_data is not whole", where=where)
    label = numbers[5] & 0xFFFFFFFF
    return Datum(
        (numbers[1], numbers[2], numbers[3]),
        bytes(data),
        label - (1 << 32) if label >> 31 else label,
        np.frombuffer(bytes(floats), "<f4").astype(np.float32),
        bool(numbers[7]),
        where,
    )


def _varint(buffer: bytes, at: int, where: str) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(buffer) and shift < 70:
        byte = buffer[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise FormatError(f"is no Datum: a number at byte {at} has no end", where=where)
