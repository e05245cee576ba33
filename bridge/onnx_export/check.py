"""The check after an export: the written bytes, run against a second engine."""

from __future__ import annotations

import numpy as np

from bridge import engines
from bridge.errors import DifferenceError, UnsupportedLayerError
from bridge.onnx_export.graph import Graph
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Net

RTOL, ATOL = 1e-3, 1e-4
"""Two float32 engines that sum in different orders stay well within this; a wrong lowering does not."""

_HALF = (5e-2, 1e-2)
"""The same for a model in float16, whose values have 11 bits."""


def check_run(data: bytes, net: Net, graph: Graph, seed: int, preprocess: Preprocess | None = None) -> list[str]:
    """Run the model on seeded inputs, in ONNX Runtime and, as its layers, in Chainer.

    Args:
        data: The serialised model.
        net: What it was made from.
        graph: How it was made.
        seed: For the inputs, float32 from the standard normal distribution.
        preprocess: What the model does to its image input first.

    Returns:
        Remarks: why something was not checked.

    Raises:
        DifferenceError: The outputs differ; names the first layer that does.
    """
    if problem := engines.missing("onnxruntime"):
        return [f"not run: {problem.args[0]}"]
    inputs = seeded_inputs(graph, seed)
    outputs = _run(data, inputs)
    if problem := engines.missing("chainer"):
        return [f"run, but not compared with a second engine: {problem.args[0]}"]
    if preprocess:
        image = preprocess.input_of(net)
        inputs[image] = preprocess.apply(inputs[image])
    try:
        expected = engines.make("chainer", net).outputs(inputs)
    except UnsupportedLayerError as error:
        return [f"run, but not compared with Chainer: {error.args[0]}"]
    for name, values in outputs.items():
        if not close(values, expected[graph.blobs.get(name, name)], _HALF if graph.half else (RTOL, ATOL)):
            raise DifferenceError(
                f"output '{name}' of the exported model differs from Chainer's; {_first_layer(net, inputs)}",
                where=net.where,
                hint="nothing was written; --no-check writes it all the same",
            )
    return []


def seeded_inputs(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Values for each input, at the extents that the graph was lowered with."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(graph.builder.shapes[name].extents).astype(np.float32) for name in graph.inputs}


def close(a: np.ndarray, b: np.ndarray, bounds: tuple[float, float] = (RTOL, ATOL)) -> bool:
    """Whether two outputs agree; the absolute part grows with the values' own size."""
    if a.shape != b.shape:
        return False
    finite = np.abs(b[np.isfinite(b)])
    return bool(np.allclose(a, b, bounds[0], bounds[1] * max(1.0, float(finite.max(initial=0))), equal_nan=True))


def _run(data: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    fed = {value.name: inputs[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, fed), strict=True))


def _first_layer(net: Net, inputs: dict[str, np.ndarray]) -> str:
    mine, theirs = (engines.make(name, net).tops(inputs) for name in ("onnxruntime", "chainer"))
    for layer, a, b in zip(net.layers, mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            if x is not None and y is not None and not close(x, y):
                return f"{layer.label} is the first that does"
    return "no single layer does"
