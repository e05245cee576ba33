"""The schema of Caffe's messages: what each field number of a binary file means.

The facts stand in ``caffe.proto``, those of the forks in ``forks.proto``; the generated
``caffe_pb2`` and ``forks_pb2`` are only asked for their descriptors.
Messages are decoded by :mod:`backends.wire` and encoded by
:mod:`bridge.caffe_files.proto.encode`, so that a fork's colliding or unknown fields lose nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from bridge.caffe_files.proto import caffe_pb2
from bridge.errors import UsageError
from bridge.schema.message import Symbol, Value

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
_LENGTH = 2
_WIRES = {
    "message": _LENGTH,
    "string": _LENGTH,
    "bytes": _LENGTH,
    "float": 5,
    "double": 1,
    **dict.fromkeys(("int", "uint", "bool", "enum"), 0),
}
"""The wire type of one value of a kind."""


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
        default: Its value where a message does not have it.
    """

    number: int
    name: str
    kind: str
    repeated: bool
    packed: bool
    type: str
    symbols: Mapping[int, str]
    default: Value | None = None

    @property
    def meaning(self) -> tuple[str, str, bool, str]:
        """What tells the field from another one of its number: its name, and how it is written."""
        return self.name, self.kind, self.repeated, self.type

    def written_as(self, wire: int) -> bool:
        """Whether the field can have a wire type; a repeated scalar may be one packed run."""
        return wire == _WIRES[self.kind] or (self.repeated and wire == _LENGTH)


class Schema(NamedTuple):
    """A message type.

    Attributes:
        name: Its name.
        by_number: Its fields by number.
        by_name: Its fields by name.
        choices: What forks have under a number on which they do not agree.
        forks: Which forks may have written it.
    """

    name: str
    by_number: Mapping[int, Field]
    by_name: Mapping[str, Field]
    choices: Mapping[int, tuple[Field, ...]] = MappingProxyType({})
    forks: tuple[str, ...] = ()

    def inner(self, field: Field) -> Schema:
        """The type of a field that is a message."""
        return schema(field.type, self.forks)

    def at(self, number: int, wire: int) -> Field | None:
        """The field of a number, written with a wire type; nothing where forks leave it open."""
        field = self.by_number.get(number)
        if field is not None or number not in self.choices:
            return field
        fit = {other.meaning: other for other in self.choices[number] if other.written_as(wire)}
        return next(iter(fit.values())) if len(fit) == 1 else None


@cache
def schema(name: str, forks: tuple[str, ...] = ()) -> Schema:
    """The message type of that name, such as ``NetParameter``.

    Args:
        name: Its name in caffe.proto.
        forks: Which forks may have written the message; none for caffe.proto alone. One fork's fields take the place
            of caffe.proto's. Where there are several, a field is in :attr:`Schema.by_number` if all of them agree
            on it, else caffe.proto's; what remains is in :attr:`Schema.choices`.
    """
    base = {field.number: field for field in _base(name)}
    if not forks:
        return Schema(name, base, {field.name: field for field in base.values()}, {}, ())
    found: dict[int, list[Field]] = {}
    for fork in forks:
        for field in _overlaid(name, fork):
            found.setdefault(field.number, []).append(field)
    agreed = {
        number: fields[0] if len({field.meaning for field in fields}) == 1 else base.get(number)
        for number, fields in found.items()
    }
    sure = {number: field for number, field in agreed.items() if field is not None}
    choices = {number: tuple(fields) for number, fields in found.items() if agreed[number] is None}
    return Schema(name, sure, {field.name: field for field in sure.values()}, choices, forks)


@cache
def _overlaid(name: str, fork: str) -> tuple[Field, ...]:
    """The fields of a message as one fork has them."""
    own = _own(name, fork)
    names, numbers = {field.name for field in own}, {field.number for field in own}
    base = [field for field in _base(name) if field.name not in names and field.number not in numbers]
    symbols = {field.name: field.symbols for field in _base(name)}
    return (*base, *(field._replace(symbols={**symbols.get(field.name, {}), **field.symbols}) for field in own))


@cache
def dialects() -> Mapping[str, Schema]:
    """Each fork's own fields of ``LayerParameter``; those of BVLC Caffe and of SSD are the rest."""
    forks = {}
    for fork in _dialect_messages():
        fields = _own("LayerParameter", fork)
        forks[fork] = Schema(
            fork, {field.number: field for field in fields}, {field.name: field for field in fields}, {}, (fork,)
        )
    return forks


def forks_of(dialect: str) -> tuple[str, ...]:
    """The forks that a ``--dialect`` stands for.

    Args:
        dialect: ``auto`` for any, ``bvlc`` for caffe.proto alone, or one of :func:`dialects`.

    Raises:
        UsageError: There is no such dialect.
    """
    if dialect in ("auto", "bvlc"):
        return tuple(dialects()) if dialect == "auto" else ()
    if dialect not in dialects():
        raise UsageError(f"no dialect '{dialect}'", hint=f"dialects: auto, bvlc, {', '.join(dialects())}")
    return (dialect,)


def param_field(forks: tuple[str, ...], number: int, layer_type: str, names: Collection[str] = ()) -> Field | None:
    """Which parameter field of a layer a number is.

    A number that several forks use is read as the one whose name goes with the layer's
    type (``interp_param`` in a layer of type ``Interp``; caffe.proto's own comes first),
    else as ``forks`` agree on it.

    Args:
        forks: Which forks may have written the layer.
        number: The field's number in ``LayerParameter``.
        layer_type: The layer's type.
        names: Names of the fields that a layer of this type reads.
    """
    known = schema("LayerParameter", forks).by_number.get(number)
    own = schema("LayerParameter").by_number.get(number)
    for field in (own, known, *(other for fork in dialects().values() for other in [fork.by_number.get(number)])):
        if field is not None and (field.name in names or _goes_with(field.name, layer_type)):
            return field
    return known


def writers_of(
    forks: tuple[str, ...], message: str, number: int, wire: int, names: Collection[str] = ()
) -> tuple[str, ...]:
    """Which forks can have written a field; all of ``forks`` where the field says nothing about it.

    Args:
        forks: Those that come into question.
        message: The type of the message that it is in.
        number: The field's number.
        wire: Its wire type.
        names: Names that the field may have; none if it may have any.
    """

    def fits(field: Field | None) -> bool:
        return field is not None and field.written_as(wire) and (not names or field.name in names)

    if fits(schema(message).by_number.get(number)):
        return forks
    return tuple(fork for fork in forks if any(f.number == number and fits(f) for f in _own(message, fork))) or forks


@cache
def fields_by_name(message: str, fork: str = "") -> Mapping[str, Field]:
    """The fields of a message by name: a fork's own first, then caffe.proto's, then any other fork's.

    Another fork's is left out if caffe.proto has its number for something else: it would be read back as that.
    """
    fields: dict[str, Field] = {}
    taken = {field.number for field in _base(message)} if message != "LayerParameter" else set()
    for other in dialects():
        own = (field for field in _own(message, other) if field.number not in taken)
        fields.update((field.name, field) for field in own if field.name not in fields)
    fields.update((field.name, field) for field in _base(message))
    fields.update((field.name, field) for field in (_own(message, fork) if fork in dialects() else ()))
    return fields


@cache
def variants(message: str) -> Mapping[str, Mapping[str, Field]]:
    """Every known field of a message by name, and which forks have it; ``caffe.proto`` stands for BVLC and SSD."""
    found: dict[str, dict[str, Field]] = {}
    for fork, fields in (("caffe.proto", _base(message)), *((fork, _own(message, fork)) for fork in dialects())):
        for field in fields:
            found.setdefault(field.name, {})[fork] = field
    return found


def meanings(message: str, number: int) -> Mapping[str, str]:
    """What each fork calls a number that has no name: ``{"nvcaffe": "engine", "windows": "sqrt_scale"}``."""
    return {
        fork: field.name
        for name, forks in variants(message).items()
        for fork, field in forks.items()
        if field.number == number
    }


def _goes_with(name: str, layer_type: str) -> bool:
    return name.removesuffix("_param").replace("_", "") == layer_type.lower()


@cache
def _base(message: str) -> tuple[Field, ...]:
    """The fields of a message in caffe.proto, or of one that all forks have alike."""
    descriptor = _descriptor(message)
    return tuple(_fields(descriptor)) if descriptor is not None else ()


@cache
def _own(message: str, fork: str) -> tuple[Field, ...]:
    """The fields that a fork adds to a message, or has in place of others."""
    descriptor = _dialect_messages()[fork]
    if message != "LayerParameter":
        descriptor = descriptor.nested_types_by_name.get(message)
    return tuple(_fields(descriptor)) if descriptor is not None else ()


@cache
def _dialect_messages() -> Mapping[str, Any]:
    from bridge.caffe_files.proto import forks_pb2

    return dict(forks_pb2.DESCRIPTOR.message_types_by_name["Dialect"].nested_types_by_name)


def _descriptor(name: str) -> Any:
    found = caffe_pb2.DESCRIPTOR.message_types_by_name.get(name)
    if found is not None:
        return found
    from bridge.caffe_files.proto import forks_pb2

    return forks_pb2.DESCRIPTOR.message_types_by_name.get(name)


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
            _default(f),
        )
        for f in descriptor.fields
    ]


def _repeated(field: Any) -> bool:
    # ``label`` is deprecated from protobuf 6 on, ``is_repeated`` new with it.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)


def _default(field: Any) -> Value | None:
    """The value of a field that is not set, as a prototxt has it; nothing for messages and repeated fields."""
    if field.message_type or _repeated(field):
        return None
    if field.enum_type:
        return Symbol(field.enum_type.values_by_number[field.default_value].name)
    value: Value = field.default_value
    return float(str(np.float32(value))) if _KINDS[field.type] == "float" else value
