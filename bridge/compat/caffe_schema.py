"""Message classes from the serialized descriptor that Chainer's ``caffe_pb2`` embeds."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper


def namespace(serialized: bytes) -> dict[str, Any]:
    """What the generated module would define: message classes, enums and their values.

    The classes live in a descriptor pool of their own, so that another ``caffe.proto``
    in the same process, pycaffe's for one, does not clash with them.

    Args:
        serialized: A ``FileDescriptorProto``.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(serialized)
    file = pool.FindFileByName(descriptor_pb2.FileDescriptorProto.FromString(serialized).name)
    names: dict[str, Any] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        names[name] = message_class(message)
    for name, enum in file.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names.update((value.name, value.number) for value in enum.values)
    return names


def message_class(descriptor: Any) -> Any:
    """The class of a message; protobuf 4.21 has only the older of the two ways."""
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(descriptor.file.pool).GetPrototype(descriptor)  # type: ignore[attr-defined]
