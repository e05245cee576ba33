"""A parameter message as a tree of named fields, with no schema behind it.

The text of a prototxt and the parameter messages inside a caffemodel both become such a tree. So a
layer is built in the same way from either file, and fields that only a fork of Caffe has keep their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union


class Symbol(str):
    """An enum value by name, such as ``MAX``; written without quotation marks."""

    __slots__ = ()


class Fixed32(int):
    """The four bytes of a field without a name, as a little-endian number: a float's, or an integer's."""

    __slots__ = ()


class Fixed64(int):
    """The eight bytes of a field without a name."""

    __slots__ = ()


class Group(bytes):
    """The bytes of a group without a name, from behind its first tag to the end of its last."""

    __slots__ = ()


Scalar = bool | int | float | str | bytes | Symbol
Value = Union[Scalar, "Message"]


class Message:
    """An ordered multi-map from field name to values.

    As in protocol buffers' text format, a field may stand more than once; reading a
    singular field takes its last value. ``where`` says where the message came from,
    for errors.
    """

    __slots__ = ("_fields", "where")

    def __init__(self, where: str = "", **fields: Value | list[Value]) -> None:
        self._fields: dict[str, list[Value]] = {}
        self.where = where
        for name, value in fields.items():
            for item in value if isinstance(value, list) else [value]:
                self.add(name, item)

    def add(self, name: str, value: Value) -> None:
        """Append one value to the field ``name``."""
        self._fields.setdefault(name, []).append(value)

    def set(self, name: str, *values: Value) -> None:
        """Replace all values of the field ``name``; with none given, drop the field."""
        if values:
            self._fields[name] = list(values)
        else:
            self._fields.pop(name, None)

    def all(self, name: str) -> list[Value]:
        """All values of a repeated field, in order."""
        return self._fields.get(name, [])

    def get(self, name: str, default: Value | None = None) -> Value | None:
        """The last value of a singular field."""
        values = self._fields.get(name)
        return values[-1] if values else default

    def text(self, name: str, default: str = "") -> str:
        """A singular field as text."""
        value = self.get(name)
        return default if value is None else str(value)

    def message(self, name: str) -> Message:
        """A singular sub-message; repeats are merged as protocol buffers do; absent is empty."""
        parts = self.messages(name)
        if len(parts) == 1:
            return parts[0]
        merged = Message(self.where)
        for part in parts:
            merged.merge(part)
        return merged

    def messages(self, name: str) -> list[Message]:
        """All sub-messages of a repeated field."""
        return [value for value in self.all(name) if isinstance(value, Message)]

    def merge(self, other: Message) -> None:
        """Append every field of ``other``."""
        for name, value in other.items():
            self.add(name, value)

    def copy(self) -> Message:
        """A deep copy."""
        twin = Message(self.where)
        for name, value in self.items():
            twin.add(name, value.copy() if isinstance(value, Message) else value)
        return twin

    def names(self) -> list[str]:
        """The names of the fields that are present."""
        return list(self._fields)

    def items(self) -> Iterator[tuple[str, Value]]:
        """Each single value with its field's name."""
        for name, values in self._fields.items():
            for value in values:
                yield name, value

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self._fields == other._fields

    __hash__ = None  # type: ignore[assignment]  # a Message can change

    def __repr__(self) -> str:
        return f"Message({self._fields!r})"
