"""An ONNX file's own graph, run as it stands, as one side of a comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bridge.errors import BridgeError, MissingExtraError, ModelError
from bridge.schema import Net, Shape, times
from bridge.verification.graph_inputs import pair_inputs
from bridge.verification.outputs import Side
from bridge.verification.parts import compare_outputs
from bridge.verification.results import DIFFERENT, PartResult, PartsResult
from bridge.verification.segments import Place

if TYPE_CHECKING:
    from bridge.engines.sandbox import Sandbox
    from bridge.onnx_export.inside import Inside
    from bridge.onnx_export.preprocess import Preprocess

_BYTES = "give an input that was made from 8-bit pixels: --recorded IO.npz"


LayerRun = Callable[[int, Mapping[Place, np.ndarray]], "dict[Place, np.ndarray] | None"]
"""Runs one layer, by its index, on given values of its bottoms."""


class GraphRun(NamedTuple):
    """What the graph of an ONNX file declares and computes.

    Attributes:
        side: Its values where they are the tops of layers of the net.
        parts: Its inputs and outputs against the net's, and whether a runtime takes it.
        remarks: What cannot be run, and why; what the graph does to its image input first.
        half: Whether it computes in float16.
        layer: Runs one layer of the graph on inputs; ``None`` instead of its tops where its nodes are not apart.
        refused: Whether a runtime does not run it to its end.
    """

    side: Side
    parts: PartsResult
    remarks: tuple[str, ...] = ()
    half: bool = False
    layer: LayerRun | None = None
    refused: bool = False


def run_graph(
    runtime: Sandbox, path: str | Path, net: Net, inputs: Mapping[str, np.ndarray], *, subset: bool = False
) -> GraphRun:
    """Run the graph of an ONNX file, and take each value that is the top of a layer of the net.

    A graph that cannot be run to its end is run as far as it can.

    Args:
        runtime: Runs the graph; to be closed by who made it, after the last layer was run.
        path: The file.
        net: The net whose blobs the graph's values are named after.
        inputs: The input blobs.
        subset: Whether an input or output that only one side has is no difference.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        FormatError: The file is no ONNX model.
        ModelError: It takes inputs of the net's own extents, and was to be fed with others.
    """
    from bridge import engines

    problem = engines.missing("onnxruntime")
    if problem is not None:
        raise MissingExtraError(f"the graph of {path} was not run: {problem.args[0]}", hint=problem.hint)
    from bridge.onnx_export.inside import Inside
    from bridge.onnx_export.preprocess import Preprocess

    inside = Inside(path)
    preprocess, image = Preprocess.from_metadata(inside.metadata, str(path))
    given = inputs
    if image in inputs:  # the graph takes the raw image; what it makes of it is the net's input
        raw = _image(preprocess, image, inputs[image], str(path))
        inputs, given = {**inputs, image: preprocess.apply(raw)}, {**inputs, image: raw}
    ways = pair_inputs(inside, net, given, str(path), image=image, subset=subset)
    parts = [*ways.parts, *_outputs(inside, net, inputs, str(path), subset)]
    if not ways.possible:
        return GraphRun(Side(f"graph of {path}", {}), PartsResult(net.where, str(path), tuple(parts)), refused=True)
    names = _names(net, inputs)[0]
    fed = {name: array if own == image else np.asarray(array, np.float32) for name, own, array in ways.fed}
    values, reached, reason = _run(runtime, inside, {name for tops in names for name in tops}, fed)
    known = {**{name: np.asarray(array, np.float32) for name, array in inputs.items()}, **values}
    refusal = reason or _refusal(runtime, inside, fed)
    remarks = [f"{path}: node {inside.node(reached)} cannot be run: {reason}"] if reason else []
    if refusal:
        parts.append(PartResult("graph", "", DIFFERENT, *(remarks or [f"ONNX Runtime refuses it: {refusal}"])))
    if image:
        remarks.append(f"{path} takes '{image}' before its preprocessing ({preprocess}), and is fed so")
    if inside.half:
        remarks.append(f"{path} computes in float16, and is compared as such")
    return GraphRun(
        Side(f"graph of {path}", _places(net, names, known)),
        PartsResult(net.where, str(path), tuple(parts)),
        tuple(remarks),
        inside.half,
        functools.partial(_run_layer, runtime, inside, net, names) if ways.by_name else None,
        bool(refusal),
    )


def _places(net: Net, names: Sequence[Sequence[str]], known: Mapping[str, np.ndarray]) -> dict[Place, np.ndarray]:
    """The values of a graph by their places in the net."""
    places = {Place(-1, i): known[name] for i, name in enumerate(net.inputs) if name in known}
    for index, tops in enumerate(names):
        for top, name in enumerate(tops):
            if name in known and not net.layers[index].is_input:
                places[Place(index, top)] = known[name]
    return places


def _image(preprocess: Preprocess, name: str, x: np.ndarray, path: str) -> np.ndarray:
    """The image that a graph's preprocessing turns into the net's input."""
    image = preprocess.undo(np.asarray(x, np.float32))
    if preprocess.uint8 and not preprocess.gives(image, x):
        raise ModelError(
            f"takes 8-bit pixels as '{name}', and the input does not come from any", where=path, hint=_BYTES
        )
    return image


def _run_layer(
    runtime: Sandbox,
    inside: Inside,
    net: Net,
    names: list[tuple[str, ...]],
    index: int,
    values: Mapping[Place, np.ndarray],
) -> dict[Place, np.ndarray] | None:
    """What the nodes of one layer make of values; ``None`` where no nodes lead from its bottoms to its tops."""
    inputs = list(net.inputs)
    known = {inputs[place.top] if place.layer < 0 else names[place.layer][place.top]: place for place in values}
    found = inside.between(known, [name for name in names[index] if name])
    if found is None:
        return None
    model, used = found
    try:
        fed = {name: values[known[name]] for name in used}
        arrays = runtime.run(model, [name for name in names[index] if name], fed, inside.folder)
    except ModelError:  # a value of another type in between; the whole graph was run before
        return None
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return {Place(index, top): arrays[name] for top, name in enumerate(names[index]) if name in arrays}


def _outputs(
    inside: Inside, net: Net, inputs: Mapping[str, np.ndarray], path: str, subset: bool
) -> Iterator[PartResult]:
    """The outputs that the graph declares against the net's: names, order, types, shapes."""
    from bridge.onnx_export.dims import fits, label

    wanted = _names(net, inputs)[1]
    yield from compare_outputs(wanted, [name for name, _, _ in inside.outputs], (net.where, path), subset=subset)
    shapes = dict(zip(wanted, _output_shapes(net, inputs), strict=False))
    for name, extents, is_float in inside.outputs:
        shape = shapes.get(name)
        if shape is not None and extents is not None and not fits(shape, extents, {}):
            yield PartResult("output", name, DIFFERENT, f"its extents are {times(shape)} against {label(extents)}")
        if name in shapes and not is_float:
            yield PartResult("output", name, DIFFERENT, f"its type is not float32 in {path}")


def _output_shapes(net: Net, inputs: Mapping[str, np.ndarray]) -> list[Shape | None]:
    """The shape of each output of the net, for the given inputs; ``None`` where values decide it."""
    tops = net.infer({name: array.shape for name, array in inputs.items()})
    places = [net.flow.last[name] for name in net.outputs]
    return [
        None if place.layer < 0 or net.layers[place.layer].data_dependent else tops[place.layer][place.top]
        for place in places
    ]


def _refusal(runtime: Sandbox, inside: Inside, fed: Mapping[str, np.ndarray]) -> str:
    """Why the model as it stands cannot be run; empty if it can."""
    model, names = inside.whole()
    if not names:
        return "it declares no outputs"
    try:
        runtime.run(model, list(names), fed, inside.folder)
    except ModelError as error:
        return error.text
    return ""


def computes_in_half(path: str | Path) -> bool:
    """Whether the graph of an ONNX file computes in float16; see :attr:`bridge.onnx_export.inside.Inside.half`."""
    from bridge.onnx_export.inside import Inside

    return Inside(path).half


def _names(net: Net, inputs: Mapping[str, np.ndarray]) -> tuple[list[tuple[str, ...]], list[str]]:
    """What the exporter calls each top of each layer, and each output of the net.

    Where the net cannot be exported, the last values only, by the names of the blobs.
    """
    from bridge.onnx_export.graph import lower
    from bridge.onnx_export.model import DEFAULT_OPSET

    try:
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        graph = lower(net, opset=DEFAULT_OPSET, inputs=shapes, dynamic_batch=False, every_top=True)
        return graph.tops, list(graph.outputs)[: len(net.outputs)]  # those of other layers' tops come behind them
    except BridgeError:
        last = {top: index for index, layer in enumerate(net.layers) for top in layer.tops}
        tops = [
            tuple(top if last[top] == index else "" for top in layer.tops) for index, layer in enumerate(net.layers)
        ]
        return tops, list(net.outputs)


def _run(
    runtime: Sandbox, inside: Inside, wanted: set[str], fed: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], int, str]:
    """The wanted values of as many nodes as can be run, how many that is, and why not more."""
    from bridge.engines.sandbox import TimeLimitError

    seconds = runtime.seconds
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
    runtime.seconds = seconds
    return values, good, reason


def _try(
    runtime: Sandbox, inside: Inside, nodes: int, wanted: set[str], fed: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    model, names = inside.part(nodes, wanted)
    return runtime.run(model, names, fed, inside.folder) if names else {}
