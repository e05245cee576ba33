"""Writer of ``.caffemodel`` files in Caffe's current form (V2).

Values stream from where they are to the file, a few megabytes at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from bridge.caffe_files.proto import fields_by_name
from bridge.caffe_files.proto.encode import encode, encode_layer, field_tag, prefixed
from bridge.caffe_files.varint import varint
from bridge.files.atomic import pieces
from bridge.schema import Blob, Layer, Net, Shape

_LENGTH, _VARINT = 2, 0
_LAYER, _BLOBS = 100, 7
_SHAPE, _DATA, _DOUBLE, _RAW_TYPE, _RAW_DATA = 7, 5, 8, 10, 12
_HALF = 2


def write(net: Net, stream: IO[bytes], *, half: bool = False, dialect: str = "bvlc") -> None:
    """Write a net, definition and values.

    float32 goes to ``data`` and float64 to ``double_data``; float16 becomes float32, the
    only type of the two that BVLC Caffe reads, unless ``half``. Fields that no known
    caffe.proto has cannot be written; a warning names them.

    Args:
        net: The net.
        stream: The file.
        half: Keep float16 as NVCaffe's ``raw_data``.
        dialect: The fork whose numbers parameters get where forks differ.

    Raises:
        UsageError: There is no such dialect.

    Source: caffe.proto ``NetParameter``, ``LayerParameter``, ``BlobProto``.
    """
    rest = net.definition.copy()
    if net.name:
        rest.set("name", net.name)
    stream.write(encode(rest, fields_by_name("NetParameter", dialect), _warner(net.where), dialect))
    for layer in net.layers:
        _write_layer(layer, stream, half, dialect, net.where)


def _warner(where: str) -> Callable[[str], None]:
    def warn(path: str) -> None:
        warnings.warn(f"{where}: '{path}' is not written, as no known caffe.proto has it so", stacklevel=2)

    return warn


def _write_layer(layer: Layer, stream: IO[bytes], half: bool, dialect: str, where: str) -> None:
    definition = encode_layer(layer.definition, dialect, _warner(f"{where}: {layer.label}"))
    blobs = [(blob, *_header(blob, half)) for _, blob in layer.blobs.entries()]
    size = len(definition) + sum(len(head) + nbytes for _, _, head, nbytes in blobs)
    stream.write(field_tag(_LAYER, _LENGTH) + varint(size) + definition)
    for blob, dtype, head, _ in blobs:
        stream.write(head)
        for piece in pieces(blob, dtype):
            stream.write(piece)


def _header(blob: Blob, half: bool) -> tuple[np.dtype[Any], bytes, int]:
    """The dtype of the written values, the bytes of the field before them, and the number of their bytes."""
    raw = half and blob.dtype == np.float16
    dtype = blob.dtype if raw or blob.dtype == np.float64 else np.dtype(np.float32)
    nbytes = blob.size * dtype.itemsize
    field = _RAW_DATA if raw else _DOUBLE if dtype == np.float64 else _DATA
    head = _shape(blob.shape) + (field_tag(_RAW_TYPE, _VARINT) + varint(_HALF) if raw else b"")
    head += field_tag(field, _LENGTH) + varint(nbytes)
    return dtype, field_tag(_BLOBS, _LENGTH) + varint(len(head) + nbytes) + head, nbytes


def _shape(shape: Shape) -> bytes:
    """The shape; as num, channels, height and width if it may be a vector or matrix of an old file.

    Caffe fits the old form to blobs of fewer axes, and a ``BlobShape`` only to its equal.
    """
    if len(shape) == 4 and shape[:2] == (1, 1):
        return b"".join(field_tag(number, _VARINT) + varint(extent) for number, extent in enumerate(shape, 1))
    return prefixed(_SHAPE, prefixed(1, b"".join(map(varint, shape))) if shape else b"")
