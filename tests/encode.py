"""Caffemodels in every encoding there is, written for the tests by other means than the tool's own.

Definitions go through Google's protobuf runtime, from prototxt text; blobs are put
together byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from google.protobuf import text_format

from bridge.caffe_files import prototxt
from bridge.caffe_files.proto import caffe_pb2
from bridge.schema.message import Message, Symbol

V1_TYPES = {
    "Concat": "CONCAT",
    "Convolution": "CONVOLUTION",
    "Dropout": "DROPOUT",
    "InnerProduct": "INNER_PRODUCT",
    "LRN": "LRN",
    "Pooling": "POOLING",
    "ReLU": "RELU",
    "Softmax": "SOFTMAX",
}
V0_TYPES = {
    "Concat": "concat",
    "Convolution": "conv",
    "Dropout": "dropout",
    "InnerProduct": "innerproduct",
    "LRN": "lrn",
    "Pooling": "pool",
    "ReLU": "relu",
    "Softmax": "softmax",
}
V0_NAMES = {"bias_term": "biasterm", "kernel_size": "kernelsize"}
VALUES = ("packed", "unpacked", "chunked", "mixed", "double", "double unpacked", "half", "raw float", "raw double")
SHAPES = ("shape", "shape unpacked", "legacy", "absent")


# -- wire format -----------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def tag(number: int, wire: int) -> bytes:
    return varint(number * 8 + wire)


def number(field: int, value: int) -> bytes:
    return tag(field, 0) + varint(value)


def chunk(field: int, data: bytes) -> bytes:
    return tag(field, 2) + varint(len(data)) + data


# -- blobs -----------------------------------------------------------------------------------


def blob(array: np.ndarray, values: str = "packed", shape: str = "shape", diff: bool = False) -> bytes:
    """A ``BlobProto``.

    Args:
        array: The values; cast to the type of the encoding.
        values: One of VALUES.
        shape: One of SHAPES.
        diff: Add a gradient, which readers ignore.
    """
    flat = np.ravel(array)
    out = _shape(array.shape, shape)
    if values == "packed":
        out += chunk(5, flat.astype("<f4").tobytes())
    elif values == "unpacked":
        out += _unpacked(5, flat.astype("<f4"))
    elif values == "chunked":
        out += b"".join(chunk(5, part.astype("<f4").tobytes()) for part in np.array_split(flat, 3))
    elif values == "mixed":
        first, second, third = np.array_split(flat, 3)
        out += chunk(5, first.astype("<f4").tobytes()) + _unpacked(5, second.astype("<f4"))
        out += chunk(5, b"") + chunk(5, third.astype("<f4").tobytes())
    elif values == "double":
        out += (chunk(5, struct.pack("<f", 7)) if flat.size else b"") + chunk(8, flat.astype("<f8").tobytes())
    elif values == "double unpacked":
        out += _unpacked(8, flat.astype("<f8"))
    else:
        kind, dtype = {"half": (2, "<f2"), "raw float": (1, "<f4"), "raw double": (0, "<f8")}[values]
        out += number(10, kind) + chunk(12, flat.astype(dtype).tobytes())
    return out + (chunk(6, np.ones(3, "<f4").tobytes()) if diff else b"")


def stored(array: np.ndarray, values: str) -> np.ndarray:
    """The values that the encoding holds; where it holds none, no type is said."""
    if not array.size:
        return array.astype(np.float32)
    if values.startswith(("double", "raw double")):
        return array.astype(np.float64)
    return array.astype(np.float16 if values == "half" else np.float32)


def _shape(shape: Sequence[int], style: str) -> bytes:
    if style == "shape":
        return chunk(7, chunk(1, b"".join(map(varint, shape))) if shape else b"")
    if style == "shape unpacked":
        return chunk(7, b"".join(number(1, extent) for extent in shape))
    if style == "legacy":
        assert len(shape) == 4
        return b"".join(number(i, extent) for i, extent in enumerate(shape, 1))
    return b""


def _unpacked(field: int, flat: np.ndarray) -> bytes:
    head = tag(field, 5 if flat.itemsize == 4 else 1)
    return b"".join(head + value.tobytes() for value in flat)


# -- nets ------------------------------------------------------------------------------------


def net(
    layers: Iterable[tuple[Message, Sequence[bytes]]], generation: str = "V2", rest: Message | None = None
) -> bytes:
    """A ``NetParameter``.

    Args:
        layers: ``LayerParameter`` (V2) and the bytes of its blobs, for each layer.
        generation: ``V0``, ``V1`` or ``V2``.
        rest: Fields of the net itself.
    """
    parts = [definition("NetParameter", rest or Message())]
    for layer, blobs in layers:
        if generation == "V2":
            parts.append(chunk(100, definition("LayerParameter", layer) + _blobs(7, blobs)))
        elif generation == "V1":
            parts.append(chunk(2, definition("V1LayerParameter", to_v1(layer)) + _blobs(6, blobs)))
        else:
            outer, inner = to_v0(layer)
            inner_bytes = definition("V0LayerParameter", inner) + _blobs(50, blobs)
            parts.append(chunk(2, definition("V1LayerParameter", outer) + chunk(1, inner_bytes)))
    return b"".join(parts)


def definition(type_name: str, message: Message) -> bytes:
    parsed = text_format.Parse(prototxt.format(message), getattr(caffe_pb2, type_name)())
    return parsed.SerializeToString()


def _blobs(field: int, blobs: Sequence[bytes]) -> bytes:
    return b"".join(chunk(field, data) for data in blobs)


def to_v1(layer: Message) -> Message:
    """The layer in V1's words; its ``param`` entries must all have the same fields."""
    old = Message()
    for name, value in layer.items():
        if name == "type":
            old.add("type", Symbol(V1_TYPES[str(value)]))
        elif name != "param":
            old.add(name, value)
    v1_names = {"name": "param", "share_mode": "blob_share_mode", "lr_mult": "blobs_lr", "decay_mult": "weight_decay"}
    for param in layer.messages("param"):
        for name, value in param.items():
            old.add(v1_names[name], value)
    return old


def to_v0(layer: Message) -> tuple[Message, Message]:
    """The layer in V0's words: its connections, and the rest."""
    v1 = to_v1(layer)
    outer, inner = Message(), Message()
    for name, value in v1.items():
        if name in ("bottom", "top"):
            outer.add(name, value)
        elif name == "type":
            inner.add("type", V0_TYPES[layer.text("type")])
        elif isinstance(value, Message):
            for sub_name, sub_value in value.items():
                inner.add(V0_NAMES.get(sub_name, sub_name), sub_value)
        else:
            inner.add(name, value)
    return outer, inner
