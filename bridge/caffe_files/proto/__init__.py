"""The schema of Caffe's messages: what each field number of a binary file means.

The facts stand in ``caffe.proto``; the generated ``caffe_pb2`` is only asked for its
descriptors. Messages are decoded by :mod:`backends.wire` and encoded by
:mod:`bridge.caffe_files.proto.encode`, so that a fork's colliding or unknown fields lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from bridge.caffe_files.proto import caffe_pb2
from bridge.errors import UsageError
from bridge.schema.message import Message

FIRST_PARAM = 12
"""Fields of ``LayerParameter`` from this number on differ between forks."""

_KINDS = {
    1: "double",
    2: "float",
    3: "int",
    4: "uint",
    5: "int",
    8: "bool",
    9: "string",
    11: "message",
    12: "bytes",
    13: "uint",
    14: "enum",
}


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Its number on the wire.
        name: Its name in a prototxt.
        kind: ``int``, ``uint``, ``bool``, ``enum``, ``float``, ``double``, ``string``,
            ``bytes`` or ``message``.
        repeated: Whether it may stand more than once.
        packed: Whether repeated scalars are written as one run.
        type: Name of the message type, for kind ``message``.
        symbols: Name of each enum value, for kind ``enum``.
    """

    number: int
    name: str
    kind: str
    repeated: bool
    packed: bool
    type: str
    symbols: Mapping[int, str]


class Schema(NamedTuple):
    """A message type: its fields by number and by name."""

    name: str
    by_number: Mapping[int, Field]
    by_name: Mapping[str, Field]


@cache
def schema(name: str) -> Schema:
    """The message type of that name, such as ``NetParameter``."""
    fields = _fields(_descriptor(name))
    return Schema(name, {f.number: f for f in fields}, {f.name: f for f in fields})


@cache
def dialects() -> Mapping[str, Schema]:
    """Each fork's own fields of ``LayerParameter``; those of BVLC Caffe are the rest."""
    forks = {}
    for fork in _descriptor("Dialect").nested_types:
        fields = _fields(fork)
        forks[fork.name] = Schema(fork.name, {f.number: f for f in fields}, {f.name: f for f in fields})
    return forks


def dialect(name: str) -> Mapping[int, Field]:
    """The fields of ``LayerParameter`` by number, as one fork has them.

    Args:
        name: ``bvlc``, or a fork that :func:`dialects` lists.

    Raises:
        UsageError: There is no such dialect.
    """
    base = schema("LayerParameter").by_number
    if name == "bvlc":
        return base
    if name not in dialects():
        raise UsageError(f"no dialect '{name}'", hint=f"dialects: bvlc, {', '.join(dialects())}")
    return {**base, **dialects()[name].by_number}


def param_field(fields: Mapping[int, Field], number: int, layer_type: str) -> Field | None:
    """Which parameter field of a layer a number is.

    A number that several forks use is read as the one whose name goes with the layer's
    type (``interp_param`` in a layer of type ``Interp``), else as ``fields`` have it.
    """
    field = fields.get(number)
    if field is not None and _goes_with(field.name, layer_type):
        return field
    for fork in dialects().values():
        other = fork.by_number.get(number)
        if other is not None and _goes_with(other.name, layer_type):
            return other
    return field


def unknown_fields(layer: Message) -> Iterator[str]:
    """Paths of those fields of a ``LayerParameter`` that no known caffe.proto has (``relu_param.slope``)."""
    return _unknown(layer, [schema("LayerParameter"), *dialects().values()], "")


def _unknown(message: Message, schemas: Sequence[Schema], path: str) -> Iterator[str]:
    for name in message.names():
        fields = [known.by_name[name] for known in schemas if name in known.by_name]
        if not fields and not name.isdecimal():  # a number is what a caffemodel has of a field without a name
            yield path + name
        inner = [schema(field.type) for field in fields if field.kind == "message"]
        for part in message.messages(name) if inner else ():
            yield from _unknown(part, inner, f"{path}{name}.")


def _goes_with(name: str, layer_type: str) -> bool:
    return name.removesuffix("_param").replace("_", "") == layer_type.lower()


def _descriptor(name: str) -> Any:
    return caffe_pb2.DESCRIPTOR.message_types_by_name[name]


def _fields(descriptor: Any) -> list[Field]:
    return [
        Field(
            f.number,
            f.name,
            _KINDS[f.type],
            _repeated(f),
            f.GetOptions().packed,
            f.message_type.name if f.message_type else "",
            {value.number: value.name for value in f.enum_type.values} if f.enum_type else {},
        )
        for f in descriptor.fields
    ]


def _repeated(field: Any) -> bool:
    # ``label`` is deprecated from protobuf 6 on, ``is_repeated`` new with it.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)
