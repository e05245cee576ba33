"""Blobs as they lie in a file: located, counted and shaped without touching a value.

Source: caffe.proto ``BlobProto``, Caffe's ``Blob::FromProto``; for ``raw_data``, NVCaffe
and OpenCV's ``shrinkCaffeModel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from backends.wire import FIXED32, FIXED64, LENGTH, VARINT, FileBytes, Span, signed, varints
from bridge.caffe_files.proto import schema
from bridge.limits.budget import BUDGET, shape_problem
from bridge.schema import Blob, Location, Shape, count, times

_LEGACY = ("num", "channels", "height", "width")
_RAW_DTYPES = {0: "<f8", 1: "<f4", 2: "<f2"}


class Pieces:
    """The pieces of a repeated field of floats: packed runs, single values, or both.

    Attributes:
        dtype: Type of the values, little-endian.
        count: How many values there are.
        at: Byte of the first, if they lie unbroken.
    """

    __slots__ = ("at", "count", "dtype", "fixed")

    def __init__(self, dtype: str, fixed: int) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.fixed = fixed
        self.count = 0
        self.at: int | None = None

    def add(self, span: Span, name: str, wire: int, a: int, b: int) -> None:
        """Count one piece."""
        held, step = self.held(span, name, wire, a, b)
        if held:
            self.at = None if self.count or (held > 1 and step != self.dtype.itemsize) else a
            self.count += held

    def held(self, span: Span, name: str, wire: int, a: int, b: int) -> tuple[int, int]:
        """Number of values in a piece, and bytes from one to the next."""
        width = self.dtype.itemsize
        if wire == LENGTH:
            if (b - a) % width:
                raise span.error(a, f"{name}: length {b - a} is not a multiple of {width}")
            return (b - a) // width, width
        return ((b - a + 1) // (width + 1), width + 1) if wire == self.fixed else (0, width)


class Stored:
    """A ``BlobProto`` in a file.

    Args:
        span: Its bytes.

    Attributes:
        field: The field that holds the values: ``data``, ``double_data`` or ``raw_data``.
        values: Its pieces.
        shape: Shape as stored; ``None`` where the file has none.
        other: Numbers of fields that no known caffe.proto has.

    Raises:
        FormatError: The bytes are not wire format, or the shape is not one.
    """

    __slots__ = ("field", "other", "shape", "span", "values")

    def __init__(self, span: Span) -> None:
        floats = {"data": Pieces("<f4", FIXED32), "double_data": Pieces("<f8", FIXED64)}
        legacy: dict[str, int] = {}
        dims: list[int] | None = None
        raw, raw_type = (0, 0), None
        self.other: set[int] = set()
        for number, wire, a, b in span.fields():
            field = span.schema.by_number.get(number)
            name = field.name if field is not None else ""
            if name in floats:
                floats[name].add(span, name, wire, a, b)
            elif name in _LEGACY and wire == VARINT:
                legacy[name] = signed(a)
            elif name == "shape" and wire == LENGTH:
                dims = (dims or []) + _dims(span.child("shape", a, b, schema("BlobShape")))
            elif name == "raw_data" and wire == LENGTH:
                raw = a, b
            elif name == "raw_data_type" and wire == VARINT:
                raw_type = a
            elif field is None:
                self.other.add(number)
        self.span = span
        # Any of the four old fields, even if zero, overrules a shape.
        self.shape = _shape(span, [legacy.get(name, 0) for name in _LEGACY] if legacy else dims)
        self.field = "double_data" if floats["double_data"].count else "data"
        if raw[1] > raw[0]:
            self.field = "raw_data"
            floats["raw_data"] = _raw(span, raw_type, *raw, self.shape)
        self.values = floats[self.field]

    def blob(self, label: str) -> Blob:
        """The blob, its values to be loaded when asked for.

        Args:
            label: What an error calls it.

        Raises:
            FormatError: The number of values is not that of the shape.
        """
        values, source = self.values, self.span.source
        shape = self.shape
        if shape is None:  # Caffe writes one always; other tools do not
            shape = () if values.count == 1 else (values.count,)
        if count(shape) != values.count:
            message, expected = f"{label} has {values.count} values", f"{count(shape)} = {times(shape)}"
            raise source.error(self.span.start, message, expected=expected)
        location = None
        if values.at is not None:
            location = Location(source.name, values.at, values.count * values.dtype.itemsize, source.stamp)
        return Blob(shape, values.dtype.newbyteorder("="), self.load, location)

    def load(self) -> np.ndarray:
        """The values, flat, in host byte order; a view into the file where they lie unbroken."""
        dtype, at, source = self.values.dtype, self.values.at, self.span.source
        source.check()
        if at is not None:
            values = np.frombuffer(source.buffer, dtype, self.values.count, at)
        else:
            nbytes = self.values.count * dtype.itemsize
            values = BUDGET.load(nbytes, source.name, lambda: np.concatenate([np.zeros(0, dtype), *self._chunks()]))
        return values.astype(dtype.newbyteorder("="), copy=False)

    def _chunks(self) -> Iterator[np.ndarray]:
        buffer, dtype = self.span.source.buffer, self.values.dtype
        source = FileBytes(buffer, self.span.source.name)
        span = Span(source, self.span.start, self.span.end, self.span.schema, self.span.path)
        number = span.schema.by_name[self.field].number
        for entry, wire, a, b in span.fields():
            if entry == number:
                held, step = self.values.held(span, self.field, wire, a, b)
                if held:
                    yield np.ndarray((held,), dtype, buffer, a, (step,))


def _dims(span: Span) -> list[int]:
    dims: list[int] = []
    for number, wire, a, b in span.fields():
        if number == 1 and wire == VARINT:
            dims.append(signed(a))
        elif number == 1 and wire == LENGTH:
            dims.extend(map(signed, varints(span, a, b)))
    return dims


def _shape(span: Span, dims: list[int] | None) -> Shape | None:
    """The shape, if it is one that Caffe could have."""
    if dims is None:
        return None
    if problem := shape_problem(dims):
        raise span.error(span.start, problem)
    return tuple(dims)


def _raw(span: Span, kind: int | None, a: int, b: int, shape: Shape | None) -> Pieces:
    """Values in ``raw_data``; where their type is not said it is that which fills the shape."""
    if kind is None and shape is not None and count(shape):
        kind = {2: 2, 4: 1, 8: 0}.get((b - a) // count(shape))
    dtype = _RAW_DTYPES.get(kind or 0)
    if dtype is None:
        raise span.error(a, f"raw_data_type {kind}", expected="0 (double), 1 (float) or 2 (half)")
    pieces = Pieces(dtype, -1)
    pieces.add(span, "raw_data", LENGTH, a, b)
    return pieces
