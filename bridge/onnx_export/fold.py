"""Constant folding: nodes that read only constants are computed at export, such as the boxes of a detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bridge.onnx_export.builder import GraphBuilder, OnnxNode
from bridge.onnx_export.operators import Op
from bridge.schema import count

LARGE = 1 << 20
"""Largest result in bytes that is stored; above it, only results no larger than their inputs are."""


def fold_constants(g: GraphBuilder, keep: set[str]) -> None:
    """Replace nodes by the constants that they compute.

    Args:
        g: The graph.
        keep: Values that somebody outside reads, so that they must stay.
    """
    kept, folded = [], dict[str, str]()
    for node in g.nodes:
        node.inputs = [folded.get(name, name) for name in node.inputs]
        value = None if keep.intersection(node.outputs) else _value(g, node)
        if value is None:
            kept.append(node)
        else:
            folded[node.outputs[0]] = g.const(value, f"{node.layer}/constant")
    g.nodes[:] = kept


def _value(g: GraphBuilder, node: OnnxNode) -> np.ndarray | None:
    """The result of a node, if that is known and worth being stored."""
    compute = _OPERATORS.get(node.op_type)
    inits = [g.initializers.get(name) for name in node.inputs]
    if compute is None or not inits:
        return None
    arrays = [init.numpy() for init in inits if init is not None and not init.roles]
    if len(arrays) < len(inits):  # not a constant, or a blob, which keeps its place
        return None
    made = np.asarray(compute(*arrays, **node.attributes))
    return made if made.nbytes <= max(LARGE, sum(array.nbytes for array in arrays)) else None


def _reshape(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(shape)])


def _slice(x: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> np.ndarray:
    places = [slice(None)] * x.ndim
    every = np.arange(len(starts)) if axes is None else axes
    strides = np.ones(len(starts), np.int64) if steps is None else steps
    for axis, start, end, step in zip(every, starts, ends, strides, strict=True):
        stop = None if step < 0 and end < -x.shape[axis] else int(end)
        places[axis] = slice(int(start), stop, int(step))
    return x[tuple(places)]


def _unsqueeze(x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    Op.Concat: lambda *x, axis: np.concatenate(x, axis),
    Op.Flatten: lambda x, axis=1: x.reshape(count(x.shape[:axis]), -1),
    "Gather": lambda x, indices, axis=0: np.take(x, indices, axis),
    "Mul": np.multiply,
    Op.Reshape: _reshape,
    Op.Slice: _slice,
    "Sub": np.subtract,
    "Unsqueeze": _unsqueeze,
}
"""Operators that are folded, computed in the dtype that a runtime uses."""
