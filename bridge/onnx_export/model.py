"""The graph as an ONNX model: protobuf messages, versions, metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

import bridge
from bridge.onnx_export.builder import OnnxInitializer, OnnxNode
from bridge.onnx_export.dims import Extent
from bridge.onnx_export.file import OnnxFile, stays_in_messages
from bridge.onnx_export.graph import Graph

MIN_OPSET = 13
DEFAULT_OPSET = 17
"""The default operator set, which has every operator that is used and runs in old runtimes."""


def newest_opset() -> int:
    """The newest default operator set that the installed ``onnx`` knows."""
    return int(onnx.defs.onnx_opset_version())


def to_file(graph: Graph, *, name: str, metadata: dict[str, str]) -> OnnxFile:
    """Make the model; its IR version is the lowest that the opset allows."""
    g = graph.builder
    large = {key: init for key, init in g.initializers.items() if not stays_in_messages(init)}
    opsets = [helper.make_opsetid("", g.opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(g.domains - {""})]
    proto = helper.make_graph(
        [_node(node, index) for index, node in enumerate(g.nodes)],
        name or "net",
        [
            _value_info(value, shape, TensorProto.UINT8 if value in graph.bytes else TensorProto.FLOAT)
            for value, shape in graph.inputs.items()
        ],
        [_value_info(value, shape) for value, shape in graph.outputs.items()],
        initializer=[_tensor(key, value) for key, value in g.initializers.items() if key not in large],
        value_info=_between(graph),
    )
    model = helper.make_model(proto, opset_imports=opsets, producer_name="weight-bridge")
    model.producer_version = bridge.__version__
    model.ir_version = helper.find_min_ir_version_for(opsets[:1])
    helper.set_model_props(model, metadata)
    return OnnxFile(model, large)


def blob_index(graph: Graph, names: Sequence[str]) -> str:
    """JSON that says which initializer holds which blob, so that the file can be read back.

    Args:
        graph: The graph.
        names: The layers' names, by index.
    """
    entries: list[dict[str, Any]] = [
        {
            "index": index,
            "layer": names[index],
            "role": role,
            "initializer": key,
            "shape": list(init.values.shape[::-1] if init.transposed else init.values.shape),
            **({"transposed": True} if init.transposed else {}),
        }
        for key, init in graph.builder.initializers.items()
        for index, role in init.roles
    ]
    entries += [
        {"index": index, "layer": names[index], "role": role, "value": value, "shape": [1]}
        for index, role, value in graph.builder.merged
    ]
    return json.dumps(entries, separators=(",", ":"))


def _between(graph: Graph) -> list[onnx.ValueInfoProto]:
    made = {name for node in graph.builder.nodes for name in node.outputs}
    return [
        _value_info(name, shape, TensorProto.FLOAT16 if name in graph.half else TensorProto.FLOAT)
        for name, shape in graph.values.items()
        if name in made and name not in graph.outputs
    ]


def _node(node: OnnxNode, index: int) -> onnx.NodeProto:
    proto = helper.make_node(node.op_type, node.inputs, node.outputs, domain=node.domain, **_plain(node.attributes))
    proto.name = f"{node.layer}/{node.op_type}_{index}" if node.layer else f"{node.op_type}_{index}"
    return proto


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()}


def _value_info(name: str, shape: Sequence[Extent], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _tensor(name: str, init: OnnxInitializer) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, dims=init.shape, data_type=helper.np_dtype_to_tensor_dtype(init.dtype))
    proto.raw_data = b"".join(init.pieces())
    return proto
