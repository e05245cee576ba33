"""Caffe's message classes: ``NetParameter``, ``SolverParameter``, ``Datum``, ``BlobProto`` and all others.

They are those of BVLC Caffe 1.0 with the messages and fields of its forks, so that the prototxt of any
of them can be merged. A fork's field whose number is another one's has a number of its own here: as
text it is the fork's, as bytes only this package reads it. Their package is ``caffe``, as Caffe's own
has it, in a descriptor pool of their own, so that another ``caffe.proto`` may be loaded in the same process.

Source: caffe.proto.
"""

from __future__ import annotations

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
    """The schema under Caffe's own names, with the messages and fields of the forks."""
    file, forks = (descriptor_pb2.FileDescriptorProto() for _ in range(2))
    _own.DESCRIPTOR.CopyToProto(file)
    _forks.DESCRIPTOR.CopyToProto(forks)
    messages = {message.name: message for message in (*file.message_type, *forks.message_type)}
    _add(messages["BNParameter"], messages.pop("SegNetBNParameter"), _FREE)
    dialects = messages.pop("Dialect").nested_type
    for number, fork in enumerate(dialects, 1):
        _add(messages["LayerParameter"], fork, _FREE + 100 * number)
        for message in fork.nested_type:
            _add(messages.setdefault(message.name, message), message, _FREE + 100 * number)
    enums = [*file.enum_type, *forks.enum_type]
    del file.message_type[:], file.enum_type[:]
    file.message_type.extend(messages.values())
    file.enum_type.extend(enums)
    own = {f".caffe.{enum.name}" for fork in dialects for enum in fork.enum_type}
    homes = sorted((f".{file.package}.Dialect.{fork.name}." for fork in dialects), key=len)
    for message in file.message_type:
        for field in filter(lambda field: field.type_name, message.field):
            for home in (*homes, f".{file.package}."):
                field.type_name = field.type_name.replace(home, ".caffe.", 1)
            field.type_name = field.type_name.replace("SegNetBNParameter", "BNParameter")
            if field.type_name in own:
                field.type_name = field.type_name.replace(".caffe.", ".caffe.LayerParameter.", 1)
    file.package, file.name = "caffe", "caffe.proto"
    return file


def _add(message: Any, other: Any, free: int) -> None:
    """Add the fields and enumerations that another message has and this one lacks.

    Args:
        message: What is added to.
        other: The other message.
        free: A field whose number is taken gets this number, or one behind it.
    """
    for enum in other.enum_type:
        own = next((known for known in message.enum_type if known.name == enum.name), None)
        if own is None:
            message.enum_type.add().CopyFrom(enum)
        elif own is not enum:
            names, numbers = ({getattr(value, part) for value in own.value} for part in ("name", "number"))
            own.value.extend(v for v in enum.value if v.name not in names and v.number not in numbers)
    for place, field in enumerate(other.field):
        if field.name in {known.name for known in message.field}:
            continue
        message.field.add().CopyFrom(field)
        if field.number in {known.number for known in message.field[:-1]}:
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
