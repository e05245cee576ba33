"""Clean-up of a graph: fewer nodes, and the same numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bridge.onnx_export.builder import GraphBuilder, OnnxInitializer, OnnxNode
from bridge.onnx_export.fold import fold_constants
from bridge.onnx_export.operators import Op
from bridge.schema import count

_INTEGERS = {Op.ArgMax, "Mod", "NonZero", "Shape"}
"""Operators that give integers, as they are used here."""
_MOVES = {Op.Flatten, "Identity", Op.Reshape}
"""Operators whose output has the values of their first input."""


def clean_up(g: GraphBuilder, keep: set[str]) -> None:
    """All of it.

    Args:
        g: The graph.
        keep: Values that somebody outside reads, so that they must stay.
    """
    fuse_affine(g, keep)
    fold_constants(g, keep)
    fold_transposes(g)
    drop_casts(g, keep)
    merge_reshapes(g, keep)
    merge_twins(g)
    drop_unused(g, keep)


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


def _absorb(g: GraphBuilder, norm: OnnxNode, node: OnnxNode, uses: Counter[str]) -> bool:
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
    g.initializers[name] = OnnxInitializer((channels,), constant.values, constant.roles)
    norm.inputs[slot] = name
    return True


def fold_transposes(g: GraphBuilder) -> None:
    """Store matrices transposed if every node reads them transposed, and remove the Transpose nodes."""
    turned: dict[str, str] = {}
    rename: dict[str, str] = {}
    for node in g.nodes:
        init = g.initializers.get(node.inputs[0]) if node.op_type == Op.Transpose else None
        if init is not None and len(init.shape) == 2:
            source = node.inputs[0]
            if source not in turned:
                turned[source] = g.unique(f"{source}.T")
                g.initializers[turned[source]] = init.turned()
            rename[node.outputs[0]] = turned[source]
    _rewire(g, rename)


def drop_casts(g: GraphBuilder, keep: set[str]) -> None:
    """Let nodes that need integers read them before they become floats, such as the mask of a pooling.

    Args:
        g: The graph.
        keep: Values that somebody outside reads.
    """
    uses = Counter(name for node in g.nodes for name in node.inputs)
    producers = {name: node for node in g.nodes for name in node.outputs}
    rename: dict[str, str] = {}
    for node in g.nodes:
        if node.op_type != "Cast" or node.attributes["to"] != g.INT64:
            continue
        path, before = [node], producers.get(node.inputs[0])
        while before and before.op_type in _MOVES and uses[before.outputs[0]] == 1 and before.outputs[0] not in keep:
            path.append(before)
            before = producers.get(before.inputs[0])
        if before and _floats(before, producers, g):
            path[-1].inputs[0] = before.inputs[0]
            rename[node.outputs[0]] = node.inputs[0]
    _rewire(g, rename)


def _floats(node: OnnxNode, producers: dict[str, OnnxNode], g: GraphBuilder) -> bool:
    """Whether a node casts integers to floats."""
    before = producers.get(node.inputs[0]) if node.op_type == "Cast" and node.attributes["to"] == g.FLOAT else None
    return before is not None and before.op_type in _INTEGERS


def merge_reshapes(g: GraphBuilder, keep: set[str]) -> None:
    """Let a Reshape read what another one, or a Flatten, before it reads.

    Args:
        g: The graph.
        keep: Values that somebody outside reads; of one that stays, nothing would be gained.
    """
    uses = Counter(name for node in g.nodes for name in node.inputs)
    producers = {name: node for node in g.nodes for name in node.outputs}
    for node in g.nodes:
        before = producers.get(node.inputs[0]) if node.op_type == Op.Reshape else None
        if before is None or before.op_type not in (Op.Flatten, Op.Reshape):
            continue
        extents = g.initializers.get(node.inputs[1])
        if extents is None or uses[node.inputs[0]] > 1 or node.inputs[0] in keep:
            continue
        copied = np.flatnonzero(extents.numpy() == 0).tolist()  # from the axes of what is reshaped
        if not copied or (copied == [0] and _keeps_first_axis(g, before)):
            node.inputs[0] = before.inputs[0]


def _keeps_first_axis(g: GraphBuilder, node: OnnxNode) -> bool:
    if node.op_type == Op.Flatten:
        return bool(node.attributes.get("axis", 1) == 1)
    extents = g.initializers.get(node.inputs[1])
    return extents is not None and bool(extents.numpy()[:1] == 0)


def merge_twins(g: GraphBuilder) -> None:
    """Merge nodes that compute the same value, unless both are tops, whose names must stay."""
    seen: dict[tuple[object, ...], list[str]] = {}
    rename: dict[str, str] = {}
    for node in g.nodes:
        node.inputs = [rename.get(name, name) for name in node.inputs]
        attributes = tuple((name, repr(value)) for name, value in sorted(node.attributes.items()))
        key = (node.op_type, node.domain, tuple(node.inputs), attributes, len(node.outputs))
        first = seen.setdefault(key, node.outputs)
        if first is not node.outputs and g.shapes.keys().isdisjoint(node.outputs):
            rename.update(zip(node.outputs, first, strict=True))
    _rewire(g, rename)


def _rewire(g: GraphBuilder, rename: dict[str, str]) -> None:
    """Replace values by others, and remove the nodes that made them."""
    g.nodes[:] = [node for node in g.nodes if rename.keys().isdisjoint(node.outputs)]
    for node in g.nodes:
        node.inputs = [rename.get(name, name) for name in node.inputs]


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
