"""Clean-up of a built graph: what changes no number and leaves fewer nodes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bridge.onnx_export.builder import GraphBuilder, Initializer, Node
from bridge.schema import count


def fuse_affine(g: GraphBuilder, keep: set[str]) -> None:
    """Merge a Scale into the BatchNormalization before it: its gamma and beta become the node's.

    Args:
        g: The graph.
        keep: Values that somebody outside reads, so that they must stay.
    """
    uses = Counter(name for node in g.nodes for name in node.inputs)
    producers = {node.outputs[0]: node for node in g.nodes}
    dropped: set[int] = set()
    for node in g.nodes:
        norm = producers.get(node.inputs[0]) if node.op_type in ("Mul", "Add") and node.inputs else None
        if norm is None or norm.op_type != "BatchNormalization" or norm.outputs[0] in keep:
            continue
        if uses[norm.outputs[0]] == 1 and _absorb(g, norm, node, uses):
            producers[node.outputs[0]] = norm
            g.shapes.setdefault(node.outputs[0], g.shapes[norm.outputs[0]])  # the next one asks for it
            norm.outputs = node.outputs
            dropped.add(id(node))
    g.nodes[:] = [node for node in g.nodes if id(node) not in dropped]


def _absorb(g: GraphBuilder, norm: Node, node: Node, uses: Counter[str]) -> bool:
    """Let ``norm`` do what ``node`` does to its result, if that is per channel."""
    constant = g.initializers.get(node.inputs[1])
    channels = count(g.initializers[norm.inputs[1]].shape)
    # an operand with the channels' extent may stand for another axis: its axes tell, counted from the last
    axes = len(g.shapes[norm.outputs[0]])
    if constant is None or constant.shape != (channels, *[1] * (axes - 2)):
        return False
    slot, neutral = (1, 1.0) if node.op_type == "Mul" else (2, 0.0)
    gamma, beta = (g.initializers[name].numpy() for name in norm.inputs[1:3])
    if not np.all((gamma if slot == 1 else beta) == neutral) or (slot == 1 and np.any(beta)):
        return False
    name = node.inputs[1] if uses[node.inputs[1]] == 1 else g.unique(node.inputs[1])
    g.initializers[name] = Initializer((channels,), constant.values, constant.roles)
    norm.inputs[slot] = name
    return True


def drop_unused(g: GraphBuilder, outputs: set[str]) -> None:
    """Remove nodes and initializers that no output depends on."""
    needed, kept = set(outputs), []
    for node in reversed(g.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    g.nodes[:] = kept[::-1]
    for name in [name for name in g.initializers if name not in needed]:
        del g.initializers[name]


