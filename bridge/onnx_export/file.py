"""An ONNX file whose weights are never in memory all at once.

A ``ModelProto`` is written in parts: the messages without large tensors, then the tensors,
copied piece by piece from the files that hold them, then what is known only at the end. Protocol
buffers allow fields in any order, so each part is written as soon as it is known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from bridge.caffe_files.varint import varint
from bridge.errors import ModelError, UsageError
from bridge.onnx_export.between import Nodes
from bridge.onnx_export.builder import OnnxInitializer

_SMALL, _SMALL_INTEGERS = 1024, 1 << 20
LIMIT = (1 << 31) - 1
"""The largest message, in bytes, that protocol buffers read."""
PAGE = 4096
"""Tensors in a file of their own start at multiples of this many bytes, so that runtimes can map them."""
_GRAPH, _METADATA = 7, 14  # of ModelProto
_INITIALIZER, _RAW_DATA = 5, 9  # of GraphProto, of TensorProto
_EXTERNAL = onnx.TensorProto.EXTERNAL


def stays_in_messages(init: OnnxInitializer) -> bool:
    """Whether a tensor is stored with the nodes: constants of at most 1 KB, and integers of at most 1 MB.

    Integers are shapes and lists of extents, such as the 300 of a ``Split`` into the steps of an LSTM. Runtimes
    infer shapes from them, and refuse those that lie in another file.
    """
    return init.nbytes <= (_SMALL_INTEGERS if np.issubdtype(init.dtype, np.integer) else _SMALL)


@dataclass
class OnnxFile:
    """A model whose large tensors are kept apart.

    Attributes:
        model: Everything but the large tensors.
        tensors: These, by name.
        external: What of them lies in another file, as (path relative to the model, offset).
        late: Gives metadata that is known only when the tensors were written.
    """

    model: onnx.ModelProto
    tensors: dict[str, OnnxInitializer]
    external: dict[str, tuple[str, int]] = field(default_factory=dict)
    late: Callable[[], Mapping[str, str]] = dict

    # -- its bytes ---------------------------------------------------------------------------------

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
        front = self._without_graph() + _tag(_GRAPH, total)
        if len(front) + total > LIMIT - PAGE:  # a page is more than late metadata take
            raise UsageError(
                f"the model takes {len(front) + total:,} bytes, one file can hold {LIMIT - PAGE:,}",
                hint="--external-data puts the weights into a file beside it",
            )
        yield front
        yield graph
        for name, init in self.tensors.items():
            yield wrapped[name] + heads[name]
            if name not in self.external:
                yield from init.pieces()
        for key, value in self.late().items():
            entry = onnx.StringStringEntryProto(key=key, value=value).SerializeToString()
            yield _tag(_METADATA, len(entry)) + entry

    def _without_graph(self) -> bytes:
        rest = onnx.ModelProto()
        rest.CopyFrom(self.model)
        rest.ClearField("graph")
        return rest.SerializeToString()

    def _head(self, name: str) -> bytes:
        """A TensorProto up to its values."""
        init = self.tensors[name]
        proto = onnx.TensorProto(name=name, dims=init.shape, data_type=helper.np_dtype_to_tensor_dtype(init.dtype))
        if name in self.external:
            _refer(proto, *self.external[name], init.nbytes)
            return proto.SerializeToString()
        return proto.SerializeToString() + _tag(_RAW_DATA, init.nbytes)

    def tobytes(self) -> bytes:
        """The whole file in memory."""
        return b"".join(self.pieces())

    def stub(self, outputs: Sequence[str] = ()) -> bytes:
        """The model without the values of its large tensors, which its user has to supply.

        Args:
            outputs: Names of values to make outputs as well.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for name, init in self.tensors.items():
            kind = helper.np_dtype_to_tensor_dtype(init.dtype)
            _refer(model.graph.initializer.add(name=name, dims=init.shape, data_type=kind), name, 0, init.nbytes)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model.SerializeToString()

    @functools.cached_property
    def _nodes(self) -> Nodes:
        graph = self.model.graph
        return Nodes(graph.node, {*self.tensors, *(tensor.name for tensor in graph.initializer)})

    def between(self, known: Mapping[str, np.ndarray], wanted: Sequence[str]) -> OnnxFile:
        """The part of the model that leads from some values to others.

        Args:
            known: The values that it takes as its inputs, as far as it reads them.
            wanted: The values that it puts out.

        Raises:
            ModelError: It needs other values.
        """
        found = self._nodes.between(known, wanted)
        if found is None:
            raise ModelError(f"the model has no nodes that compute {', '.join(wanted)} from {', '.join(known)}")
        nodes, used = found
        read = {name for node in nodes for name in node.input}
        kinds = {name: helper.np_dtype_to_tensor_dtype(known[name].dtype) for name in used}
        inputs = [helper.make_tensor_value_info(name, kind, known[name].shape) for name, kind in kinds.items()]
        constants = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        graph = helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=name) for name in wanted], constants)
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return OnnxFile(model, {name: init for name, init in self.tensors.items() if name in read})

    # -- checks and shape inference ---------------------------------------------------------------------

    def check(self) -> None:
        """ONNX's own full check, with the large tensors as inputs, so that none has to be loaded.

        Raises:
            ModelError: ONNX does not take the graph.
        """
        try:
            onnx.checker.check_model(self._twin(), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"ONNX's checker refuses the graph: {' '.join(str(error).split())}") from None

    def infer_shapes(self) -> None:
        """Add inferred types and shapes to values that have none yet."""
        graph = self.model.graph
        known = {value.name for values in (graph.value_info, graph.output, graph.input) for value in values}
        for value in self._inferred():
            if value.name not in known and value.type.tensor_type.HasField("shape"):
                graph.value_info.append(_plain(value))

    def element_types(self) -> dict[str, int]:
        """The type of each value, as far as ONNX infers it."""
        graph = self.model.graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*self._inferred(), *graph.input)}
        types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
        return types

    def _inferred(self) -> Sequence[onnx.ValueInfoProto]:
        found = onnx.shape_inference.infer_shapes(self._twin(), data_prop=True).graph
        return [*found.value_info, *found.output]

    def _twin(self) -> onnx.ModelProto:
        twin = onnx.ModelProto()
        twin.CopyFrom(self.model)
        for name, init in self.tensors.items():
            kind = helper.np_dtype_to_tensor_dtype(init.dtype)
            twin.graph.input.append(helper.make_tensor_value_info(name, kind, init.shape))
        return twin

    # -- external data -----------------------------------------------------------------------------

    def store_beside(self, path: Path) -> Iterator[bytes | memoryview]:
        """Put the tensors into a file of their own: marks them, and gives that file's bytes.

        Args:
            path: That file, in the model's folder.
        """
        offset = 0
        for name, init in self.tensors.items():
            self.external[name] = (path.name, offset)
            offset += -(-init.nbytes // PAGE) * PAGE
        return self._aligned()

    def _aligned(self) -> Iterator[bytes | memoryview]:
        for init in self.tensors.values():
            yield from init.pieces()
            yield bytes(-init.nbytes % PAGE)

    def refer_to_source(self, path: Path) -> list[str]:
        """Refer to tensors in the file that was read, instead of storing them.

        Args:
            path: The file of the model; the source must lie in its folder or below, which is
                as far as ONNX lets a model refer.

        Returns:
            Names of the tensors that do not lie there as they are needed, and so stay in the model.

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
                    f"the weights lie in {place.path}",
                    expected=f"a place in {folder} or below",
                    where=str(path),
                    hint="write the model beside its weights",
                )
            self.external[name] = (source.relative_to(folder).as_posix(), place.offset)
        return [name for name in self.tensors if name not in self.external]


def _refer(proto: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Mark a tensor as stored in a file."""
    proto.data_location = _EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))


def _plain(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Remove the names that shape inference invents for unknown extents."""
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param.startswith("unk__"):
            dim.ClearField("dim_param")
    return value


def _tag(field_number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return varint(field_number << 3 | 2) + varint(length)
