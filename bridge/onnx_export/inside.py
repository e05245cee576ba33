"""The inner values of an ONNX file's graph, made outputs so that they can be compared."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bridge.errors import FormatError
from bridge.limits.sources import inside, read_file
from bridge.onnx_export.between import Nodes
from bridge.onnx_export.dims import Extent
from bridge.onnx_export.half import HALF_KEY


class Inside:
    """An ONNX file whose graph is run in parts.

    Args:
        path: The file; data beside it stays where it is.

    Attributes:
        inputs: Its inputs with their extents, as far as it tells them.
        types: The type of each input as NumPy names it, empty if the file does not tell.
        outputs: Each declared output in order: name, extents as far as it tells them, whether it is float32.
        metadata: Its texts by key.
        nodes: How many nodes it has.
        folder: Where its data lies, if not in the file itself.

    Raises:
        MissingFileError: It cannot be opened.
        FormatError: It is no ONNX model, or its data lies outside the file's folder.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._model = onnx.load_model_from_string(read_file(path))
        except DecodeError as error:
            raise FormatError(f"is no ONNX model: {error}", where=str(path)) from None
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        self.inputs = {value.name: _extents(value) for value in graph.input if value.name not in constants}
        self.types = {value.name: _type(value) for value in graph.input if value.name not in constants}
        self.outputs = [
            (value.name, _extents(value), value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
            for value in graph.output
        ]
        self.metadata = {entry.key: entry.value for entry in self._model.metadata_props}
        self.nodes = len(graph.node)
        self.folder = Path(path).resolve().parent
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    inside(self.folder, entry.value, str(path))

    @property
    def half(self) -> bool:
        """Whether the graph computes in float16: the file says so, or all of its weights are stored so."""
        kinds = {tensor.data_type for tensor in self._model.graph.initializer if len(tensor.dims) > 1}
        floats = kinds & {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
        return self.metadata.get(HALF_KEY) == "true" or floats == {onnx.TensorProto.FLOAT16}

    def node(self, index: int) -> str:
        """The name of a node in a message."""
        node = self._model.graph.node[index]
        return f"{node.op_type} '{node.name or (node.output[0] if node.output else '')}'"

    def whole(self) -> tuple[bytes, list[str]]:
        """The model as it stands, and the names of its outputs."""
        return self._model.SerializeToString(), [name for name, _, _ in self.outputs]

    def part(self, nodes: int, wanted: Collection[str]) -> tuple[bytes, list[str]]:
        """The first nodes of the graph as a model of their own.

        Args:
            nodes: How many.
            wanted: Names of values to make outputs, where those nodes compute them.

        Returns:
            The model's bytes, and the names of its outputs.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        del graph.node[nodes:]
        del graph.output[:]
        del graph.value_info[:]  # shapes in the file may be wrong
        made = dict.fromkeys(name for node in graph.node for name in node.output if name in wanted)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        return model.SerializeToString(), list(made)

    @functools.cached_property
    def _parts(self) -> Nodes:
        graph = self._model.graph
        return Nodes(graph.node, {tensor.name for tensor in graph.initializer})

    def between(self, known: Collection[str], wanted: Collection[str]) -> tuple[bytes, list[str]] | None:
        """The nodes that lead from some values to others, as a model of their own.

        Args:
            known: Values that the model takes as its inputs.
            wanted: Values that it puts out.

        Returns:
            The model's bytes and the names of its inputs; ``None`` if other values are needed, or none of the known.
        """
        found = self._parts.between(known, wanted)
        if found is None or not found[1]:
            return None
        nodes, used = found
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        for repeated in (graph.node, graph.output, graph.input, graph.value_info):
            del repeated[:]
        graph.node.extend(nodes)
        kind = onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=onnx.TensorProto.FLOAT))
        graph.input.extend(onnx.ValueInfoProto(name=name, type=kind) for name in used)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        return model.SerializeToString(), used


def _extents(value: onnx.ValueInfoProto) -> list[Extent] | None:
    """The extents of a value, ``?`` for those that are open and have no name."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _type(value: onnx.ValueInfoProto) -> str:
    """The type of a value as NumPy names it, empty if the file does not tell."""
    kind = value.type.tensor_type.elem_type
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else ""
    except KeyError:
        return f"type {kind}"
