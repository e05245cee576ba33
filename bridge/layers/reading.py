"""Which fields of a layer's definition its type looks at: found by watching it read them."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.layers.base import REGISTRY, CaffeLayer, Params, parameters_of
from bridge.schema import Layer
from bridge.schema.message import Message, Value

Path = tuple[str, ...]
"""The names from a layer to one of its fields: ``("pooling_param", "stride")``."""


class Watched(Message):
    """A copy of a message that remembers which of its fields were asked for."""

    __slots__ = ("asked",)

    def __init__(self, message: Message) -> None:
        super().__init__(message.where)
        self.asked: set[str] = set()
        for name, value in message.items():
            self.add(name, Watched(value) if isinstance(value, Message) else value)

    def all(self, name: str) -> list[Value]:
        self.asked.add(name)
        return super().all(name)

    def get(self, name: str, default: Value | None = None) -> Value | None:
        self.asked.add(name)
        return super().get(name, default)

    def copy(self) -> Message:
        self.asked.update(self.names())
        return super().copy()

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def unread(self, path: Path = ()) -> Iterator[tuple[Path, Value]]:
        """Path and value of each field that nobody asked for; of a message that nobody asked for, of it alone."""
        for name, value in self.items():
            if isinstance(value, Watched) and name in self.asked:
                yield from value.unread((*path, name))
            elif name not in self.asked:
                yield (*path, name), value


def unread(layer: Layer) -> Iterator[tuple[Path, Value]]:
    """Path and value of each field of a layer's definition that its type does not look at.

    Args:
        layer: The layer; of one that could not be built nothing is known, and nothing is yielded.
    """
    cls = type(layer)
    if issubclass(cls, CaffeLayer):
        definition = Watched(layer.definition)
        cls.read(Params(parameters_of(cls, definition), definition, cls.enum_start))
        yield from definition.unread()


def read_messages(layer_type: str) -> tuple[str, ...]:
    """The fields of ``LayerParameter`` that a layer of a type has its parameters in; none for an unknown type."""
    cls = REGISTRY.get(layer_type)
    return tuple(name for name in (cls.message, *cls.aliases, *cls.more_messages) if name) if cls else ()
