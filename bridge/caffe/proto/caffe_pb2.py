"""Caffe's message classes: ``NetParameter``, ``SolverParameter``, ``Datum``, ``BlobProto`` and all others.

They are those of BVLC Caffe 1.0, with the messages and fields of SSD and other forks whose numbers
are free. Their package is ``caffe``, as Caffe's own has it, in a descriptor pool of their own, so
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


def _renamed() -> Any:
    """The schema under Caffe's own names."""
    file = descriptor_pb2.FileDescriptorProto()
    _own.DESCRIPTOR.CopyToProto(file)
    old, file.package, file.name = f".{file.package}.", "caffe", "caffe.proto"
    left = [message for message in file.message_type if message.name != "Dialect"]
    for message in left:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, ".caffe.", 1)
    del file.message_type[:]
    file.message_type.extend(left)
    return file


def _class(descriptor: Any) -> Any:
    """The class of a message; protobuf 4.21 has only the older of the two ways."""
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(descriptor.file.pool).GetPrototype(descriptor)


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
