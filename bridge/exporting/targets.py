"""Runtimes that a model is exported for, where one graph cannot serve all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.caffe_files.inference import inference_net
from bridge.errors import UnsupportedLayerError, UsageError
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.onnx_export.builder import GraphBuilder, OnnxNode
    from bridge.onnx_export.dims import Extent
    from bridge.onnx_export.graph import Graph


@dataclass(frozen=True)
class Limit:
    """A use of an operator that a runtime cannot take.

    Attributes:
        operator: The operator.
        what: The use, in words.
        exceeded: Whether a node of that operator is such a use.
    """

    operator: str
    what: str
    exceeded: Callable[[GraphBuilder, OnnxNode], bool]


@dataclass(frozen=True)
class Target:
    """A runtime, and what its importer of ONNX files cannot take.

    Attributes:
        title: Its name.
        static: It takes fixed extents only.
        lacks: Operators that it does not have.
        limits: Operators that it does not have in full.
        newest: The newest operator set that it takes; 0 for all.
    """

    title: str
    static: bool = False
    lacks: frozenset[str] = frozenset()
    limits: tuple[Limit, ...] = ()
    newest: int = 0


_MOST_OF_TOPK = 3840


def _gives_indices(builder: GraphBuilder, node: OnnxNode) -> bool:
    return len(node.outputs) > 1


def _asks_many(builder: GraphBuilder, node: OnnxNode) -> bool:
    count = builder.initializers.get(node.inputs[1])
    return count is not None and int(count.numpy().max()) >= _MOST_OF_TOPK


_SUPPRESSION = "NonMaxSuppression"
TARGETS = {
    "onnxruntime": Target("ONNX Runtime"),
    "opencv5": Target("OpenCV 5", lacks=frozenset({"MaxRoiPool"})),
    "opencv4": Target("OpenCV 4", True, frozenset({"MaxRoiPool", "NonMaxSuppression", "NonZero", "TopK"})),
    "openvino": Target("OpenVINO"),
    "tensorrt": Target(
        "TensorRT",
        lacks=frozenset({"MaxRoiPool"}),
        limits=(
            Limit("MaxPool", "MaxPool with Indices", _gives_indices),
            Limit("TopK", f"TopK of {_MOST_OF_TOPK} or more", _asks_many),
        ),
        newest=20,
    ),
}
"""Targets by name; docs/runtimes.md has what each was measured to take.

Source for TensorRT, which was not run: docs/operators.md of onnx/onnx-tensorrt for TensorRT 10.0.
"""


def find_target(name: str) -> Target:
    """The target of a name; for an empty one a target that takes everything.

    Raises:
        UsageError: There is none.
    """
    if name and name not in TARGETS:
        raise UsageError(f"no target '{name}'", hint=f"targets: {', '.join(TARGETS)}")
    return TARGETS.get(name, Target("any runtime"))


def net_for(target: Target, net: Net, inputs: Mapping[str, Sequence[Extent]] | None = None) -> Net:
    """The net with layers that the target can run, where a layer offers one in its place."""
    if _SUPPRESSION not in target.lacks:
        return net
    served = inference_net(net, inputs)
    others = {layer.name: other for layer in served if (other := layer.before_suppression()) is not None}
    if not others:
        return net
    writers = {name: served.layers[served.flow.last[name].layer].name for name in served.outputs}
    outputs = [
        top for name, writer in writers.items() for top in (others[writer].tops if writer in others else (name,))
    ]
    changed = served.replace(layers=tuple(others.get(layer.name, layer) for layer in served))
    labels = ", ".join(served[name].label for name in others)
    note = f"{labels}: {target.title} cannot suppress boxes, so all boxes and scores are put out (docs/export.md)"
    return changed.replace(notes=(*changed.notes, note)).with_outputs(*outputs)


def check_operators(target: Target, net: Net, graph: Graph) -> None:
    """Refuse a graph with operators that the target does not have.

    Raises:
        UnsupportedLayerError: It has some; names their layers.
        UsageError: The graph is of a newer operator set.
    """
    from bridge.onnx_export.graph import before_hint

    if target.newest and graph.builder.opset > target.newest:
        raise UsageError(
            f"opset {graph.builder.opset}", expected=f"at most {target.newest} for {target.title}", subject="--opset"
        )
    lacking: dict[str, set[str]] = {}
    for node in graph.builder.nodes:
        limits = [limit for limit in target.limits if limit.operator == node.op_type]
        problems = [limit.what for limit in limits if limit.exceeded(graph.builder, node)]
        if node.op_type in target.lacks or problems:
            lacking.setdefault(node.layer, set()).update(problems or [node.op_type])
    if lacking:
        named = "; ".join(
            f"{net[name].label} needs {', '.join(sorted(operators))}" for name, operators in lacking.items()
        )
        hint = before_hint(net, [index for index, layer in enumerate(net.layers) if layer.name in lacking])
        raise UnsupportedLayerError(f"{target.title} cannot run the model: {named}", where=net.where, hint=hint)
