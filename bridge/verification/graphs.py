"""An ONNX file's own graph, run as it stands, as one side of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError, MissingExtraError, ModelError
from bridge.schema import Net, times
from bridge.verification.outputs import Side
from bridge.verification.segments import Place

if TYPE_CHECKING:
    from bridge.engines.sandbox import Sandbox
    from bridge.onnx_export.dims import Extent


def graph_side(path: str | Path, net: Net, inputs: Mapping[str, np.ndarray]) -> tuple[Side, str]:
    """Run the graph of an ONNX file, and take each value that is the top of a layer of the net.

    A graph that cannot be run to its end is run as far as it can.

    Args:
        path: The file.
        net: The net whose blobs the graph's values are named after.
        inputs: The input blobs.

    Returns:
        The side, and a remark on what could not be run; empty if all could.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        FormatError: The file is no ONNX model.
        ModelError: It takes other inputs, or not even its first node can be run.
    """
    from bridge import engines

    problem = engines.missing("onnxruntime")
    if problem is not None:
        raise MissingExtraError(f"the graph of {path} was not run: {problem.args[0]}", hint=problem.hint)
    from bridge.onnx_export.inside import Inside

    inside = Inside(path)
    _check_inputs(inside.inputs, inputs, str(path))
    names = _names(net, inputs)
    fed = {name: np.asarray(inputs[name], np.float32) for name in inside.inputs}
    values, reached, reason = _run(inside, {name for tops in names for name in tops}, fed)
    known = {**{name: np.asarray(array, np.float32) for name, array in inputs.items()}, **values}
    places: dict[Place, np.ndarray] = {Place(-1, i): known[name] for i, name in enumerate(net.inputs) if name in known}
    for index, tops in enumerate(names):
        for top, name in enumerate(tops):
            if name in known and not net.layers[index].is_input:
                places[Place(index, top)] = known[name]
    remark = "" if reached == inside.nodes else f"{path}: node {inside.node(reached)} cannot be run: {reason}"
    return Side(f"graph of {path}", places), remark


def _check_inputs(wanted: Mapping[str, Sequence[Extent] | None], inputs: Mapping[str, np.ndarray], path: str) -> None:
    from bridge.onnx_export.dims import fits, label

    for name, extents in wanted.items():
        if name not in inputs:
            raise ModelError(f"takes an input '{name}', which the net does not have", where=path)
        shape = inputs[name].shape
        if extents is not None and not fits(shape, extents, {}):
            message = f"input '{name}' is {label(extents)} in the graph, and was fed with {times(shape)}"
            raise ModelError(message, where=path, hint="--input sets the extents of inputs")


def _names(net: Net, inputs: Mapping[str, np.ndarray]) -> list[tuple[str, ...]]:
    """What the exporter calls each top of each layer; where the net cannot be exported, the last values only."""
    from bridge.onnx_export.graph import lower
    from bridge.onnx_export.model import DEFAULT_OPSET

    try:
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        return lower(net, opset=DEFAULT_OPSET, inputs=shapes, dynamic_batch=False, every_top=True).tops
    except BridgeError:
        last = {top: index for index, layer in enumerate(net.layers) for top in layer.tops}
        return [
            tuple(top if last[top] == index else "" for top in layer.tops) for index, layer in enumerate(net.layers)
        ]


def _run(inside: Any, wanted: set[str], fed: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int, str]:
    """The wanted values of as many nodes as can be run, how many that is, and why not more."""
    from bridge.engines.sandbox import Sandbox, TimeLimitError

    with Sandbox() as runtime:
        try:
            return _try(runtime, inside, inside.nodes, wanted, fed), inside.nodes, ""
        except ModelError as error:
            reason = str(error.args[0])
            if isinstance(error, TimeLimitError):
                runtime.seconds /= 8  # the parts have one node among them that takes all the time
        good, bad = 0, inside.nodes
        values: dict[str, np.ndarray] = {}
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                values, good = _try(runtime, inside, middle, wanted, fed), middle
            except ModelError as error:
                bad, reason = middle, str(error.args[0])
        return values, good, reason


def _try(
    runtime: Sandbox, inside: Any, nodes: int, wanted: set[str], fed: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    model, names = inside.part(nodes, wanted)
    return runtime.run(model, names, fed, inside.folder) if names else {}
