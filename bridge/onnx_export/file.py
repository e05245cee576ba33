"""An ONNX file whose weights never are in memory as a whole.

A ``ModelProto`` is written in two parts: the messages without large tensors, and the
tensors, streamed from wherever their values lie. Fields may stand in any order in
protocol buffers, so that nothing has to be known twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import helper

from bridge.errors import UsageError
from bridge.onnx_export.builder import Initializer
from bridge.writers import pieces

SMALL = 1024
"""Tensors up to so many bytes stay in the messages: shapes and constants, which checkers read."""
LIMIT = (1 << 31) - 1
"""Protocol buffers read no larger message."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # ModelProto.graph, GraphProto.initializer, TensorProto.raw_data


@dataclass
class OnnxFile:
    """A model, its large tensors apart.

    Attributes:
        model: Everything but the large tensors.
        tensors: These, by name.
        external: What of them lies in another file, as (path relative to the model, offset).
    """

    model: onnx.ModelProto
    tensors: dict[str, Initializer]
    external: dict[str, tuple[str, int]] = field(default_factory=dict)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The file's bytes.

        Raises:
            UsageError: There are more than protocol buffers can read.
        """
        graph = self.model.graph.SerializeToString()
        heads = {name: self._head(name) for name in self.tensors}
        bodies = {name: 0 if name in self.external else init.nbytes for name, init in self.tensors.items()}
        wrapped = {name: _tag(_INITIALIZER, len(head) + bodies[name]) for name, head in heads.items()}
        total = len(graph) + sum(len(wrapped[name]) + len(heads[name]) + bodies[name] for name in heads)
        rest = onnx.ModelProto()
        rest.CopyFrom(self.model)
        rest.ClearField("graph")
        front = rest.SerializeToString() + _tag(_GRAPH, total)
        if len(front) + total > LIMIT:
            raise UsageError(
                f"the model takes {len(front) + total:,} bytes, one file can hold {LIMIT:,}",
                hint="--external-data puts the weights into a file beside it",
            )
        yield front
        yield graph
        for name, init in self.tensors.items():
            yield wrapped[name] + heads[name]
            if name not in self.external:
                yield from pieces(init.values, init.dtype)

    def _head(self, name: str) -> bytes:
        """A TensorProto up to its values."""
        init = self.tensors[name]
        proto = onnx.TensorProto(name=name, dims=init.shape, data_type=helper.np_dtype_to_tensor_dtype(init.dtype))
        if name in self.external:
            location, offset = self.external[name]
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", init.nbytes)):
                proto.external_data.add(key=key, value=str(value))
            return proto.SerializeToString()
        return proto.SerializeToString() + _tag(_RAW_DATA, init.nbytes)

    def tobytes(self) -> bytes:
        """The whole file in memory."""
        return b"".join(self.pieces())

    def check(self) -> None:
        """ONNX's own full check, with the large tensors as inputs, so that none has to be loaded."""
        twin = onnx.ModelProto()
        twin.CopyFrom(self.model)
        for name, init in self.tensors.items():
            kind = helper.np_dtype_to_tensor_dtype(init.dtype)
            twin.graph.input.append(helper.make_tensor_value_info(name, kind, init.shape))
        onnx.checker.check_model(twin, full_check=True)

    def store_beside(self, path: Path) -> Iterator[bytes | memoryview]:
        """Put the tensors into a file of their own: marks them, and yields that file's bytes.

        Each starts at a multiple of 4,096 bytes, so that runtimes can map it.

        Args:
            path: The file of the model; the other one has ``.data`` behind its name.
        """
        offset = 0
        for name, init in self.tensors.items():
            self.external[name] = (f"{path.name}.data", offset)
            offset += -(-init.nbytes // 4096) * 4096
        return self._aligned()

    def _aligned(self) -> Iterator[bytes | memoryview]:
        for init in self.tensors.values():
            yield from pieces(init.values, init.dtype)
            yield bytes(-init.nbytes % 4096)

    def refer_to_source(self, path: Path) -> int:
        """Leave tensors where they lie in the file that was read; returns how many.

        Args:
            path: The file of the model; the source must lie in its folder or below, which is
                as far as ONNX lets a model refer.

        Raises:
            UsageError: The source lies elsewhere.
        """
        folder = path.resolve().parent
        for name, init in self.tensors.items():
            place = init.values.location
            if place is None or init.dtype != init.values.dtype:
                continue
            source = Path(place.path).resolve()
            if not source.is_relative_to(folder):
                raise UsageError(
                    f"the weights lie in {place.path}, expected a place in {folder} or below",
                    where=str(path),
                    hint="write the model beside its weights",
                )
            self.external[name] = (source.relative_to(folder).as_posix().replace(os.sep, "/"), place.offset)
        return len(self.external)


def _tag(field_number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _varint(field_number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
