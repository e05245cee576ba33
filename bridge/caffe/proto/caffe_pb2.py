"""Caffe's message classes: ``NetParameter``, ``SolverParameter``, ``Datum``, ``BlobProto`` and all others.

They are those of BVLC Caffe 1.0 with the messages and fields of its forks, so that the prototxt of any
of them can be merged. A fork's field whose number is another one's has a number of its own here: as
text it is the fork's, as bytes only this package reads it. Their package is ``caffe``, as Caffe's own has it, in a descriptor pool of their own, so
that another ``caffe.proto`` may be loaded in the same process.

Source: caffe.proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from bridge.caffe_files.proto import caffe_pb2 as _own

TRAIN: int
TEST: int


_FREE = 50_000
"""Fields of forks whose numbers are taken are numbered from here."""


def _renamed() -> Any:
    """The schema under Caffe's own names, with the forks' fields in ``LayerParameter``."""
    file = descriptor_pb2.FileDescriptorProto()
    _own.DESCRIPTOR.CopyToProto(file)
    messages = {message.name: message for message in file.message_type}
    _add(messages["BNParameter"], messages["SegNetBNParameter"].field, _FREE)
    messages["BNParameter"].enum_type.extend(messages["SegNetBNParameter"].enum_type)
    for number, fork in enumerate(messages.pop("Dialect").nested_type):
        _add(messages["LayerParameter"], fork.field, _FREE + 100 * number)
    del messages["SegNetBNParameter"], file.message_type[:]
    file.message_type.extend(messages.values())
    old, file.package, file.name = f".{file.package}.", "caffe", "caffe.proto"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                name = field.type_name.replace(old, ".caffe.", 1)
                field.type_name = name.replace("SegNetBNParameter", "BNParameter")
    return file


def _add(message: Any, fields: Any, free: int) -> None:
    """Add the fields whose names the message does not have; under other numbers where theirs are taken."""
    for place, field in enumerate(fields):
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
