"""The checks of what a layer type declares about its blobs, and of what verification finds in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bridge.schema import Layer, Net, Shape
from bridge.testing.cases import LayerCase
from bridge.testing.hooks import OPTIONS, layer_of, tops_of
from bridge.testing.numbers import bounds_of
from bridge.verification.outputs import Comparison, Side, engine_side
from bridge.verification.results import DIFFERENT, OutputsResult
from bridge.verification.segments import Runner
from bridge.verification.tolerance import Tolerances

MOVED = 4
"""The planted fault, as a multiple of the bound."""
LEAST = 0.1
"""A fault that is usually found, relative to its blob's largest value: this much, because some layers quantise."""
_FIRST = 0.125
"""The first fault that is tried in a blob, relative to the blob's largest value."""

Change = Callable[[np.ndarray], np.ndarray]


def compared(net: Net, a: Side, b: Side, seed: int) -> OutputsResult:
    """What verification says of two sides' values."""
    runner = Runner(net, "onnxruntime", OPTIONS)
    with np.errstate(all="ignore"):
        return Comparison(net, runner, a, b, given=Tolerances(), isolate=False, seed=seed).run()


def _with(net: Net, layer: Layer) -> Net:
    return net.replace(layers=(*net.layers[:-1], layer))


# -- faults ------------------------------------------------------------------------------------------------


def weight_faults_are_found(case: LayerCase) -> Iterator[float]:
    """In each blob, a fault that moves a result by just more than four times its bound is found.

    Yields:
        For each blob whose value bears on a result the fault that is found, relative to the blob's largest value;
        1 where the bound covers the largest fault that is tried.
    """
    net, inputs = case.net(), case.inputs()
    layer = layer_of(net)
    right = engine_side("onnxruntime", net, inputs, OPTIONS)
    for role, blob in layer.blobs.entries():
        values = blob.numpy()
        largest = float(np.abs(values).max(initial=0))
        if not largest or not np.isfinite(largest):
            continue
        at = case.seed % values.size
        far = _ratio(case, net, right, _faulty(case, net, role, at, _FIRST * largest))
        if far <= MOVED:
            if far:  # else it is behind a kink, or a row of a table that no input names
                yield 1.0
            continue
        fault = min(_FIRST, _FIRST * 1.5 * MOVED / far)
        while _ratio(case, net, right, wrong := _faulty(case, net, role, at, fault * largest)) <= MOVED:
            fault = min(_FIRST, 2 * fault)  # a fault smaller than a step of a quantised layer changes nothing
        found = compared(net, right, wrong, case.seed)
        assert found.count(DIFFERENT), f"blob '{role}': a fault of {fault:.2g} of its largest value is not found"
        yield fault


def _faulty(case: LayerCase, net: Net, role: str, at: int, distance: float) -> Side:
    def moved(values: np.ndarray) -> np.ndarray:
        changed = values.copy()
        changed.reshape(-1)[at] += np.float32(distance)
        return changed

    other = _with(net, layer_of(net).with_changed({role: moved}))
    return engine_side("onnxruntime", other, case.inputs(), OPTIONS)


def _ratio(case: LayerCase, net: Net, right: Side, wrong: Side) -> float:
    """The largest distance of two sides, as a multiple of the bound."""
    ratios = [0.0]
    for place, bound in bounds_of(net, right, case.seed).items():
        a, b = (side.values[place].astype(np.float64) for side in (right, wrong))
        if a.shape == b.shape:
            with np.errstate(all="ignore"):
                ratio = np.abs(a - b) / bound.values
            ratios.append(float(ratio[np.isfinite(ratio)].max(initial=0)))
    return max(ratios)


# -- what the blobs mean -----------------------------------------------------------------------------------


def flat_weight_is_the_same(case: LayerCase) -> None:
    """``flat_weight``: a row of the weight, given flat, has the input's channels one after the other.

    So the input's channels in another order, and the weight's parts in that order, give the same outputs.
    """
    net = case.net()
    layer = layer_of(net)
    if not layer.flat_weight or "weight" not in layer.blobs or layer.group > 1 or not case.shapes:
        return
    shape, columns = case.shapes[0], layer.weight.size // max(1, layer.weight.shape[int(layer.weight_transposed)])
    axis = int(layer.attributes().get("axis", 1)) % len(shape)
    if shape[axis] > 1:
        assert not columns % shape[axis], f"flat_weight: a row of {columns} values has no {shape[axis]} equal parts"
        assert _is_in_parts(case, net, axis), (
            f"flat_weight: the flat weight does not have the places of axis {axis} of the input one after the other"
        )


def _is_in_parts(case: LayerCase, net: Net, axis: int) -> bool:
    """Whether the weight's rows are divided into as many parts as an axis of the input has places, one for each."""
    layer, inputs = layer_of(net), case.inputs()

    def rolled(values: np.ndarray) -> np.ndarray:
        rows = values.T if layer.weight_transposed else values
        parts = np.roll(rows.reshape(rows.shape[0], case.shapes[0][axis], -1), 1, axis=1).reshape(rows.shape)
        return np.ascontiguousarray(parts.T if layer.weight_transposed else parts)

    shape = layer.weight.shape
    other = _with(net, layer.with_changed({r: rolled for r, b in layer.blobs.entries() if b.shape == shape}))
    turned = np.roll(inputs["in0"], 1, axis)
    before, half, after = (
        tops_of("onnxruntime", some, {**inputs, "in0": x})[0]
        for some, x in ((net, inputs["in0"]), (other, inputs["in0"]), (other, turned))
    )
    same = np.allclose(before, after, rtol=1e-4, atol=1e-5 * float(np.abs(before).max(initial=1)))
    return same and (not np.array_equal(before, half) or not before.any())


def statistics_are_used(case: LayerCase) -> None:
    """``normalises``: the layer subtracts the stored mean and divides by the root of the stored variance."""
    net = case.net()
    layer = layer_of(net)
    if not layer.normalises or not layer.blobs or 0 in layer.summed_axes(len(case.shapes[0])):
        return  # else it computes the statistics of the batch
    channels = layer.blobs["mean"].size
    variance = 1e6 * np.arange(1, channels + 1, dtype=np.float32)  # so large that an epsilon does not count
    other = layer.with_changed({"variance": lambda old: variance.reshape(old.shape)})
    mean, variance = (values.astype(np.float64) for values in other.statistics_values())
    shape = (1, channels, *[1] * (len(case.shapes[0]) - 2))
    deviation, mean = np.sqrt(np.abs(variance)).reshape(shape), mean.reshape(shape)
    at_mean, above = (_normalised(_with(net, other), mean + step * deviation, case.shapes[0]) for step in (0.0, 1.0))
    gamma, beta = (
        layer.blobs[role].reshape(shape) if role in layer.blobs else other
        for role, other in (("gamma", 1), ("beta", 0))
    )
    if (variance > 0).all():
        assert np.allclose(at_mean, beta, atol=1e-3), "normalises: the stored mean does not become 0"
        assert np.allclose(above - at_mean, gamma, rtol=1e-2, atol=1e-3), (
            "normalises: one stored deviation above the mean does not become 1"
        )


def _normalised(net: Net, x: np.ndarray, shape: Shape) -> np.ndarray:
    (top,) = tops_of("onnxruntime", net, {"in0": np.broadcast_to(x, shape).astype(np.float32)})
    return top.astype(np.float64)


def classes_are_told_apart(case: LayerCase) -> None:
    """``classifies``: bottom 0 has a score for each class along axis 1, bottom 1 the number of the right class.

    A higher score of the right class does not make the loss larger, one of another class not smaller.
    """
    net, inputs = case.net(), case.inputs()
    if not layer_of(net).classifies:
        return
    scores, labels = inputs["in0"], inputs["in1"]
    classes = scores.shape[1]
    assert labels.size * classes == scores.size, "classifies: bottom 1 does not have one label for each place"
    assert (labels == np.rint(labels)).all(), "classifies: the labels are no whole numbers"
    places = np.arange(classes) == labels.reshape(scores.shape[0], -1, 1)  # sample, place, class
    right = np.moveaxis(places, -1, 1).reshape(scores.shape)
    before = _loss(net, inputs)
    for which, way in ((right, 1), (~right, -1)):
        higher = scores + np.float32(0.0625) * np.abs(scores) + np.float32(2.0**-6)
        after = _loss(net, {**inputs, "in0": np.where(which, higher, scores)})
        kind = "the right class" if way > 0 else "the other classes"
        assert way * (after - before) <= 1e-6 * abs(before), (
            f"classifies: with higher scores of {kind} the loss goes from {before:.6g} to {after:.6g}"
        )


def _loss(net: Net, inputs: dict[str, np.ndarray]) -> float:
    from bridge.chain.build import build_chain
    from bridge.chain.functions import chainer

    with chainer.using_config("train", False):
        values = build_chain(net).run({name: array.copy() for name, array in inputs.items()})
    return float(values[net.layers[-1].tops[0]].array)
