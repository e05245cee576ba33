"""Other forms of a graph's operators, where ONNX Runtime computes those several times faster on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bridge.onnx_export.builder import GraphBuilder, OnnxNode
from bridge.onnx_export.dims import Extent
from bridge.onnx_export.graph import Graph

_ROOTS = {0.5: 1, 0.75: 2, 1.0: 0}
"""Exponent -> how many square roots are multiplied: x ** 0.75 is sqrt(x) * sqrt(sqrt(x))."""
_NORMALIZES = {"alpha", "beta", "bias", "size"}
"""The attributes of ONNX's local response normalisation, and of no other operator."""
_MOST = 512
"""A sum over neighbours is a product with a band matrix; for more channels than these that takes longer."""


def quicken(graph: Graph) -> None:
    """Replace what has a faster form; the results differ by the rounding of the last place."""
    g = graph.builder
    nodes, made = g.nodes, []
    g.begin(len(nodes), None)
    for node in nodes:
        g.nodes = []
        if node.attributes.keys() >= _NORMALIZES:
            _normalize(g, node, (graph.inputs | graph.values).get(node.inputs[0], ()))
        made += g.nodes or [node]
    g.nodes = made


def _normalize(g: GraphBuilder, node: OnnxNode, extents: Sequence[Extent]) -> None:
    """``x / (bias + alpha / size * sum of squares) ** beta`` by a convolution and square roots.

    Source: ONNX ``LRN``; lrn_layer.cpp.
    """
    x, beta, size = node.inputs[0], round(float(node.attributes["beta"]), 6), int(node.attributes["size"])
    channels = extents[1] if len(extents) == 4 else None
    if beta not in _ROOTS or not isinstance(channels, int) or channels > _MOST:
        return
    place = np.arange(channels)
    near = abs(place[:, None] - place) <= size // 2
    factor = np.float32(node.attributes["alpha"]) / np.float32(size)
    weight = g.const(np.where(near, factor, np.float32(0)).astype(np.float32)[:, :, None, None])
    bias = g.const(np.full(channels, node.attributes["bias"], np.float32))
    power = base = g.Conv(g.Mul(x, x), weight, bias)
    if _ROOTS[beta]:
        power = root = g.Sqrt(base)
        power = root if _ROOTS[beta] == 1 else g.Mul(root, g.Sqrt(root))
    g.Div(x, power)
    g.nodes[-1].outputs = list(node.outputs)
