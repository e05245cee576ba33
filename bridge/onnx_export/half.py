"""Half precision: the same graph, computing in float16 between float32 inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bridge.onnx_export.builder import HALF_MAX, OnnxInitializer, OnnxNode
from bridge.onnx_export.graph import Graph
from bridge.onnx_export.operators import Op

HALF_KEY = "bridge.float16"
"""Name of the text in a model's metadata that tells that it computes in float16."""

_FLOAT, _FLOAT16, _INT32, _INT64 = 1, 10, 6, 7
_MOVES = {Op.Flatten, "Identity", Op.Reshape, Op.Slice, Op.Split, "Squeeze", Op.Transpose, "Unsqueeze"}
"""Operators whose output has the values of their first input, in any type."""
_READS_ANY = {"Cast", "Shape"}
"""Operators whose result is the same for either type."""
_FLOAT32_INPUTS = {"BatchNormalization": (1, 2, 3, 4), "Resize": (1, 2)}
"""Inputs that stay float32: Resize's scales, and statistics, which may be beyond float16's range."""


def to_half(graph: Graph, types: Mapping[str, int]) -> None:
    """Change a graph to float16, in place; inputs and outputs stay float32.

    Args:
        graph: The graph.
        types: ONNX's element type of each value.

    Source: ONNX ``Cast``; IEEE 754 binary16.
    """
    conversion = _Conversion(graph, types)
    conversion.run()
    graph.half = frozenset(conversion.half)
    graph.notes += _limited(graph)


class _Conversion:
    """One run of :func:`to_half`."""

    def __init__(self, graph: Graph, types: Mapping[str, int]) -> None:
        self.graph, self.g, self.types = graph, graph.builder, types
        self.half: set[str] = set()
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[OnnxNode] = []
        self.constants = {name for name, init in self.g.initializers.items() if init.values.dtype.kind == "f"}
        self.floats = self.constants | {name for name, kind in types.items() if kind == _FLOAT} | set(graph.values)

    def run(self) -> None:
        for node in self.g.nodes:
            self._convert(node)
        for name in self.graph.outputs:
            self._widen_output(name)
        self.g.nodes[:] = self.nodes
        used = {name for node in self.nodes for name in node.inputs}
        for name in self.constants - used:
            self.g.initializers[name] = self.g.initializers.pop(self.casts[name, _FLOAT16])
        back = {self.casts[name, _FLOAT16]: name for name in self.constants - used}
        for node in self.nodes:
            node.inputs = [back.get(name, name) for name in node.inputs]

    def _convert(self, node: OnnxNode) -> None:
        kind = self._precision(node)
        wide = _FLOAT32_INPUTS.get(node.op_type, ())
        if node.op_type not in _READS_ANY:
            node.inputs = [
                self._as(_FLOAT if i in wide else kind, name) if name in self.floats else name
                for i, name in enumerate(node.inputs)
            ]
        made = [name for name in node.outputs if name in self.floats]
        if kind == _FLOAT16:
            self.half.update(made)
            if node.op_type == "Cast" and made:
                node.attributes["to"] = _FLOAT16
        self.nodes.append(node)

    def _precision(self, node: OnnxNode) -> int:
        """The type in which a node computes."""
        if node.op_type in _MOVES and node.inputs[0] in self.floats:
            return _FLOAT16 if node.inputs[0] in self.half else _FLOAT
        # float16 has not each integer beyond 2,048
        integers = node.op_type == "Cast" and self.types.get(node.inputs[0]) in (_INT32, _INT64)
        old_norm = node.op_type == "BatchNormalization" and self.g.opset < 15  # one type for all inputs
        float32 = integers or old_norm or node.float32 or node.domain  # of which no type is known
        return _FLOAT if float32 else _FLOAT16

    def _as(self, kind: int, name: str) -> str:
        """The value in a type: by a Cast, or for a constant, stored in that type."""
        if name in self.constants:
            return self._constant(kind, name)
        if (name in self.half) == (kind == _FLOAT16):
            return name
        if (name, kind) not in self.casts:
            self.casts[name, kind] = self.g.unique(f"{name}/{'half' if kind == _FLOAT16 else 'float'}")
            self.nodes.append(OnnxNode("Cast", [name], [self.casts[name, kind]], {"to": kind}))
            self._know(self.casts[name, kind], name, kind)
        return self.casts[name, kind]

    def _know(self, cast: str, name: str, kind: int) -> None:
        """A new value has the shape of another."""
        if name in self.graph.values:
            self.graph.values[cast] = self.graph.values[name]
        if kind == _FLOAT16:
            self.half.add(cast)

    def _constant(self, kind: int, name: str) -> str:
        if kind == _FLOAT:
            return name
        if (name, kind) not in self.casts:
            init, twin = self.g.initializers[name], self.g.unique(f"{name}/half")
            self.casts[name, kind] = twin
            self.g.initializers[twin] = OnnxInitializer(
                init.shape, init.values, init.roles, np.dtype(np.float16), init.transposed
            )
        return self.casts[name, kind]

    def _widen_output(self, name: str) -> None:
        """Let the float32 value have the output's name."""
        if name not in self.half:
            return
        inner = self.g.unique(f"{name}/half")
        for node in self.nodes:
            node.inputs = [inner if value == name else value for value in node.inputs]
            node.outputs = [inner if value == name else value for value in node.outputs]
        self.half.discard(name)
        self._know(inner, name, _FLOAT16)
        self.nodes.append(OnnxNode("Cast", [inner], [name], {"to": _FLOAT}))


def _limited(graph: Graph) -> list[str]:
    """Notes on weights whose values float16 does not have."""
    notes = []
    for name, init in graph.builder.initializers.items():
        narrowed = init.float_type.itemsize == 2 and init.roles and init.values.dtype.itemsize > 2
        if narrowed and any((np.isfinite(part) & (np.abs(part) > HALF_MAX)).any() for part in init.parts()):
            notes.append(f"'{name}' has values beyond float16's range: they are limited to {HALF_MAX:g}")
    return notes
