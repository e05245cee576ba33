"""Caffe's message classes: ``NetParameter``, ``SolverParameter``, ``Datum``, ``BlobProto`` and all others.

They are those of BVLC Caffe 1.0 with the messages and fields of its forks, so that the prototxt of any
of them can be merged. A fork's field whose number is another one's has a number of its own here: as
text it is the fork's, as bytes only this package reads it. Their package is ``caffe``, as Caffe's own has it, in a descriptor pool of their own, so
that another ``caffe.proto`` may be loaded in the same process.

Source: caffe.proto.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from bridge.caffe_files.proto import caffe_pb2 as _own
from bridge.caffe_files.proto import forks_pb2 as _forks

TRAIN: int
TEST: int


_FREE = 50_000
"""Fields of forks whose numbers are taken are numbered from here."""


def _renamed() -> Any:
    """The schema under Caffe's own names, with the forks' messages and fields."""
    file, forks = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    _own.DESCRIPTOR.CopyToProto(file)
    _forks.DESCRIPTOR.CopyToProto(forks)
    messages = {message.name: message for message in (*file.message_type, *forks.message_type)}
    file.enum_type.extend(forks.enum_type)
    _add(messages["BNParameter"], messages.pop("SegNetBNParameter"), _FREE)
    for number, fork in enumerate(messages.pop("Dialect").nested_type):
        _add(messages["LayerParameter"], fork, _FREE + 100 * number)
        for inner in fork.nested_type:
            if inner.name in messages:
                _add(messages[inner.name], inner, _FREE + 100 * number)
            else:
                messages[inner.name] = inner
    made = [*messages.values()]
    old, file.package, file.name = f".{file.package}.", "caffe", "caffe.proto"
    for message in made:
        _rename(message, old)
    kept = [descriptor_pb2.DescriptorProto.FromString(message.SerializeToString()) for message in made]
    del file.message_type[:]
    file.message_type.extend(kept)
    return file


def _rename(message: Any, old: str) -> None:
    """Let the fields' types be those of the one package; what a fork nests is at the top of it."""
    for field in message.field:
        if field.type_name:
            name = re.sub(r"^\.caffe\.Dialect\.\w+\.", ".caffe.", field.type_name.replace(old, ".caffe.", 1))
            field.type_name = name.replace("SegNetBNParameter", "BNParameter")
    for inner in message.nested_type:
        _rename(inner, old)


def _add(message: Any, other: Any, free: int) -> None:
    """Add the fields whose names the message does not have; under other numbers where theirs are taken.

    An enumeration that comes with them is left out, and its fields too, if the message has its name or one of
    its values.
    """
    taken = {enum.name for enum in message.enum_type} | {value.name for enum in message.enum_type for value in enum.value}
    for enum in other.enum_type:
        if taken.isdisjoint({enum.name, *(value.name for value in enum.value)}):
            message.enum_type.add().CopyFrom(enum)
    known = {enum.name for enum in message.enum_type}
    nested = {enum.name for enum in other.enum_type}
    for place, field in enumerate(other.field):
        own = field.type_name.rpartition(".")[2]
        names, numbers = ({getattr(old, part) for old in message.field} for part in ("name", "number"))
        if field.name in names or (own in nested and own not in known):
            continue
        message.field.add().CopyFrom(field)
        if own in nested:
            message.field[-1].type_name = f".caffe.{message.name}.{own}"
        if field.number in numbers:
            message.field[-1].number = free + place


def _class(descriptor: Any) -> Any:
    """The class of a message; protobuf 4.21 has only the older of the two ways."""
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(descriptor.file.pool).GetPrototype(descriptor)  # type: ignore[attr-defined]


def _names() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_renamed().SerializeToString())
    file = pool.FindFileByName("caffe.proto")
    names: dict[str, Any] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        names[name] = _class(message)
        names[f"_{name.upper()}"] = message
    for name, enum in file.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names.update((value.name, value.number) for value in enum.values)
    return names


globals().update(_names())


def __getattr__(name: str) -> Any:  # for type checkers: all names are there already
    raise AttributeError(f"module 'caffe_pb2' has no attribute '{name}'")
