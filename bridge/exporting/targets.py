"""Runtimes that a model is exported for, where one graph cannot serve all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.caffe_files.inference import inference_net
from bridge.errors import UnsupportedLayerError, UsageError
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.onnx_export.dims import Extent
    from bridge.onnx_export.graph import Graph


@dataclass(frozen=True)
class Target:
    """A runtime, and what its importer of ONNX files cannot take.

    Attributes:
        title: Its name.
        static: It takes fixed extents only.
        lacks: Operators that it does not have.
    """

    title: str
    static: bool = False
    lacks: frozenset[str] = frozenset()


_SUPPRESSION = "NonMaxSuppression"
TARGETS = {
    "onnxruntime": Target("ONNX Runtime"),
    "opencv5": Target("OpenCV 5", lacks=frozenset({"MaxRoiPool"})),
    "opencv4": Target("OpenCV 4", True, frozenset({"MaxRoiPool", "NonMaxSuppression", "TopK"})),
    "openvino": Target("OpenVINO"),
}
"""Targets by name; docs/runtimes.md has what each was measured to take."""


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
    """
    from bridge.onnx_export.graph import before_hint

    lacking: dict[str, set[str]] = {}
    for node in graph.builder.nodes:
        if node.op_type in target.lacks:
            lacking.setdefault(node.layer, set()).add(node.op_type)
    if lacking:
        named = "; ".join(
            f"{net[name].label} needs {', '.join(sorted(operators))}" for name, operators in lacking.items()
        )
        hint = before_hint(net, [index for index, layer in enumerate(net.layers) if layer.name in lacking])
        raise UnsupportedLayerError(f"{target.title} cannot run the model: {named}", where=net.where, hint=hint)
