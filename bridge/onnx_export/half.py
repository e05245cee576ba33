"""Half precision: the same graph, computing in float16 between float32 inputs and outputs."""

from __future__ import annotations

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.onnx_export.builder import Node
from bridge.onnx_export.graph import Graph

_FLOAT, _FLOAT16 = 1, 10
_FLOAT32_ONLY = {"NonMaxSuppression", "MaxRoiPool", "LRN"}
"""Operators that runtimes compute in float32 only, or that lose too much in half: cast around."""
_FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Inputs of other operators that stay float32."""


def to_half(graph: Graph) -> None:
    """Change a graph to float16, in place.

    Weights and constants become float16; a Cast stands behind each input and before each
    output, so that the model is fed and read as before.

    Raises:
        UnsupportedLayerError: A constant is needed in both precisions.
    """
    g = graph.builder
    kept = {node.inputs[i] for node in g.nodes for i in _FLOAT32_INPUTS.get(node.op_type, ()) if i < len(node.inputs)}
    rename = {name: g.unique(f"{name}/half") for name in (*graph.inputs, *graph.outputs)}
    nodes = [Node("Cast", [name], [rename[name]], {"to": _FLOAT16}) for name in graph.inputs]
    for node in g.nodes:
        wide = _FLOAT32_INPUTS.get(node.op_type, ())
        if any(name in kept and i not in wide for i, name in enumerate(node.inputs)):
            raise UnsupportedLayerError(f"a constant of {node.op_type} is needed in float32 too", where=node.layer)
        node.inputs = [rename.get(name, name) for name in node.inputs]
        node.outputs = [rename.get(name, name) for name in node.outputs]
        if node.op_type == "Cast" and node.attributes.get("to") == _FLOAT:
            node.attributes["to"] = _FLOAT16
        nodes += _around(graph, node) if node.op_type in _FLOAT32_ONLY else [node]
    nodes += [Node("Cast", [rename[name]], [name], {"to": _FLOAT}) for name in graph.outputs]
    g.nodes[:] = nodes
    for name, init in g.initializers.items():
        if name not in kept and init.values.dtype.kind == "f":
            init.float_type = np.dtype(np.float16)
    graph.half = True


def _around(graph: Graph, node: Node) -> list[Node]:
    """A node in float32 between casts."""
    g = graph.builder
    before, after = [], []
    for i, name in enumerate(node.inputs):
        init = g.initializers.get(name)
        if not name or (init is not None and init.values.dtype.kind != "f"):
            continue
        before.append(Node("Cast", [name], [g.unique(f"{name}/float")], {"to": _FLOAT}))
        node.inputs[i] = before[-1].outputs[0]
    if node.op_type != "NonMaxSuppression":  # whose result is indices
        for i, name in enumerate(node.outputs):
            after.append(Node("Cast", [g.unique(f"{name}/float")], [name], {"to": _FLOAT16}))
            node.outputs[i] = after[-1].inputs[0]
    return [*before, node, *after]
