"""The checks of what a layer type declares about its numbers, from which verification makes its bounds.

Each check runs the layer on inputs that it changes a little, and compares what happens with what the
type declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from bridge import engines
from bridge.errors import BridgeError
from bridge.schema import Net, Shape, count
from bridge.testing.cases import LayerCase
from bridge.testing.hooks import OPTIONS, layer_of
from bridge.verification.outputs import Side, engine_side
from bridge.verification.segments import Place, Runner
from bridge.verification.tolerance import FACTOR, ROUNDINGS, UNIT, Bound, bounds

WIDEST = 2e-3
"""The widest bound that may be usual, relative to the largest number that the layer reads or writes.

A wider one is right where the layer divides by what is nothing but rounding, as MVN does for a constant channel.
"""
_SCALES = ((1.0, 2.0**-18), (2.0**-12, 2.0**-12))
"""Factors of the inputs, and for each a relative step on which a function is a straight line, as far as float32 tells.

Small inputs show what is rounded relative to 1.
"""
_TRIES = 8
"""How many times a layer that chooses is given inputs that tie."""
_LARGE = 8
"""A few values are fewer than this along an axis."""

_Inputs = Mapping[str, np.ndarray]


def bounds_of(net: Net, side: Side, seed: int) -> dict[Place, Bound]:
    """The bound of each top of the layer under test, on the inputs that a side has."""
    runner, last = Runner(net, "onnxruntime", OPTIONS), len(net.layers) - 1
    if not any(place[0] == last for place in side.values):
        return {}
    part = runner.alone(last)
    with np.errstate(all="ignore"):
        found = bounds(runner, part, {place: side.values[place] for place in part.inputs}, seed + last)
    return dict(found.bounds)


def _tops(net: Net, inputs: _Inputs) -> tuple[dict[Place, np.ndarray], Side]:
    with np.errstate(all="ignore"):
        side = engine_side("onnxruntime", net, inputs, OPTIONS)
    last = len(net.layers) - 1
    return {place: array.astype(np.float64) for place, array in side.values.items() if place[0] == last}, side


def _free(case: LayerCase, net: Net) -> list[str]:
    """The inputs that take any number, so that a small change of them makes sense."""
    layer = layer_of(net)
    return [f"in{i}" for i in range(len(case.shapes)) if layer.fill(i) is None]


# -- which inputs a value comes of -------------------------------------------------------------------


def sums_run_over_the_declared_axes(case: LayerCase) -> None:
    """``summed_axes``, ``adds_many``: one input changes no output beyond the axes over which the layer adds up.

    It is seen where the first top has the shape of the first bottom. A layer that adds up over no axis
    may use the values nearby, but not more of them where the input is larger.
    """
    net = case.net()
    layer = layer_of(net)
    if not case.shapes or layer.fill(0) is not None or layer.sum_terms(*case.shapes) is not None:
        return
    if 0 in case.shapes[0] or net.infer()[-1][:1] != (case.shapes[0],):
        return
    axes = layer.summed_axes(len(case.shapes[0]))
    if axes:
        reached, place = _reached(case)
        for axis in set(range(reached.ndim)) - set(axes):
            others = np.delete(reached, place[axis], axis)
            assert not others.any(), f"the layer adds up over axis {axis}, which is not among summed_axes: {axes}"
        return
    factor = -(-_LARGE // min(case.shapes[0][1:], default=_LARGE))
    few, many = (_reach_of_larger(case, times) for times in (factor, 2 * factor))
    assert many <= 1.5 * max(1, few), (
        f"a value of the top comes of {few} values, of {many} in an input twice as large: "
        "the layer adds_many, or has summed_axes"
    )


def _reach_of_larger(case: LayerCase, times: int) -> int:
    """How many outputs one input changes, where all extents but the first are so many times as large."""
    shapes = tuple((*shape[:1], *(times * extent for extent in shape[1:])) for shape in case.shapes)
    larger = dataclasses.replace(case, shapes=shapes)
    try:
        if larger.net().infer()[-1][:1] != shapes[:1]:
            return 0
    except BridgeError:  # the layer's parameters fix an extent
        return 0
    return int(np.count_nonzero(_reached(larger)[0]))


def _reached(case: LayerCase) -> tuple[np.ndarray, Shape]:
    """Which values of the first top one value of the first bottom changes, and where that value is."""
    net, inputs = case.net(), dict(case.inputs())
    first = inputs["in0"].copy()
    place = tuple(extent // 2 for extent in first.shape)
    first[place] = first.max()
    top = Place(len(net.layers) - 1, 0)
    before, side = _tops(net, {**inputs, "in0": first})
    moved = first.copy()
    moved[place] = first[place] * 1.5 + (0 if first[place] else 1)
    after, _ = _tops(net, {**inputs, "in0": moved})
    bound = bounds_of(net, side, case.seed)[top]
    return np.asarray(np.abs(after[top] - before[top]) > bound.values), place


# -- how it rounds -------------------------------------------------------------------------------------


def rounding_stays_within_its_bound(case: LayerCase) -> None:
    """``rounding_bound``, ``rounds_near_one``: what the layer rounds is within the bound that follows from them.

    On three inputs that are almost the same, with equal steps between them, a function is a straight line.
    How far the middle value is from the line is rounding, of at most four results.
    """
    net, inputs = case.net(), dict(case.inputs())
    layer, free = layer_of(net), _free(case, net)
    _bound_grows_with_the_unit(case, net)
    if layer.chooses or not free:
        return
    scale, step = _SCALES[case.seed % len(_SCALES)]
    for name in free:
        own = 1.0 if int(name[2:]) in case.data else scale  # a case that makes its values may need their range
        inputs[name] = _scaled(inputs[name], own, layer.thresholds)
    middle, side = _tops(net, inputs)
    ends = [
        _tops(net, {**inputs, **{name: inputs[name] * np.float32(1 + way * step) for name in free}})[0]
        for way in (-1, 1)
    ]
    for place, bound in bounds_of(net, side, case.seed).items():
        if any(end[place].shape != middle[place].shape for end in ends):
            continue
        with np.errstate(invalid="ignore"):
            rounding = np.abs(ends[0][place] + ends[1][place] - 2 * middle[place])
            beyond = np.isfinite(rounding) & (rounding > 4 * np.asarray(bound.values))
        assert not beyond.any(), (
            f"rounding changes the results by {rounding[beyond].max():.3g}, more than 4 x the bound ({bound.why}): "
            "see rounding_bound, rounds_near_one and sum_terms"
        )


def _scaled(array: np.ndarray, scale: float, kinks: tuple[float, ...]) -> np.ndarray:
    """An input times a factor, without values near a kink; small inputs are all the same, as if there were but one."""
    if scale < 1 and array.size:
        array = np.full_like(array, array.flat[0])
    made = np.asarray(array * np.float32(scale), np.float32)
    near = [np.abs(made - kink) < 2.0**-10 * abs(kink) for kink in kinks]
    return np.where(np.any(near, axis=0), np.float32(0), made) if near else made


def _bound_grows_with_the_unit(case: LayerCase, net: Net) -> None:
    bottoms = [array.astype(np.float64) for array in case.inputs().values()]
    with np.errstate(all="ignore"):
        narrow, wide = (layer_of(net).rounding_bound(unit, *bottoms) for unit in (UNIT, 2 * UNIT))
    if narrow is None or wide is None:
        assert narrow is wide, "rounding_bound gives a bound for some units only"
        return
    shape = net.infer()[-1][0]
    assert np.broadcast_shapes(narrow.shape, shape) == shape, f"rounding_bound: {narrow.shape} for a top of {shape}"
    assert not np.isnan(narrow).any(), "rounding_bound has NaN"
    assert (narrow >= 0).all(), "rounding_bound is negative"
    assert (wide >= narrow).all(), "rounding_bound is smaller for a larger unit"


# -- what it chooses ------------------------------------------------------------------------------------


def it_chooses_as_declared(case: LayerCase) -> bool:
    """``chooses``: inputs that tie are moved by one rounding; only a layer that chooses may then jump.

    Returns:
        Whether it does what it declares; False for a layer that chooses and did not jump, as most do now and then.
    """
    net = case.net()
    layer = layer_of(net)
    if layer.chooses:
        return any(_furthest(case, net, seed)[0] > 1 for seed in range(case.seed, case.seed + _TRIES))
    ratio, distance = _furthest(case, net, case.seed)
    why = "see chooses, or rounding_bound for a layer whose sums are much larger than its result"
    assert ratio <= 1, f"a change of one rounding moves an output by {ratio:.3g} x its bound: {why}"
    if layer.rounding_bound(UNIT, *(array.astype(np.float64) for array in case.inputs().values())) is None:
        assert distance <= WIDEST, f"a change of one rounding moves an output by {distance:.3g} of the largest: {why}"
    return True


def _furthest(case: LayerCase, net: Net, seed: int) -> tuple[float, float]:
    """How far one rounding moves an output where inputs tie: as a multiple of its bound, and of the largest number."""
    inputs, rng = dict(case.inputs()), np.random.default_rng(seed)
    free = [name for name in _free(case, net) if inputs[name].size]
    for name in free:
        values = inputs[name].reshape(-1)
        inputs[name] = values[rng.integers(0, min(4, values.size), inputs[name].shape)]
    ways = np.array([-np.inf, np.inf], np.float32)
    moved = {name: np.nextafter(inputs[name], rng.choice(ways, inputs[name].shape)) for name in free}
    before, side = _tops(net, inputs)
    after, _ = _tops(net, {**inputs, **moved})
    ratios, parts = [0.0], [0.0]
    for place, bound in bounds_of(net, side, case.seed).items():
        distance = _distance(before[place], after[place])
        finite = before[place][np.isfinite(before[place])]
        largest = max(1.0, *(float(np.abs(array).max(initial=0)) for array in (*inputs.values(), finite)))
        parts.append(float(distance.max(initial=0)) / largest)
        ratios.append(float((distance / bound.values).max(initial=0)) if distance.size else 0.0)
    return max(ratios), max(parts)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far values are apart; infinite for other shapes, 0 where one is not finite."""
    if a.shape != b.shape:
        return np.full((), np.inf)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(np.abs(a - b), nan=0, posinf=0))


# -- places between pixels ----------------------------------------------------------------------------------


def positions_fit(case: LayerCase) -> None:
    """``position_extent``: a layer that takes values between pixels declares how far from the first pixel.

    It is fed the pixels' places: what it writes are then the places that it takes.
    """
    net, inputs = case.net(), dict(case.inputs())
    layer = layer_of(net)
    if not case.shapes or len(case.shapes[0]) < 3 or layer.fill(0) is not None:
        return
    if layer.sum_terms(*case.shapes) is not None or layer.chooses or 0 in case.shapes[0] or not layer.tops:
        return
    axis = len(case.shapes[0]) - 1 - case.seed % 2
    places = np.moveaxis(np.zeros(case.shapes[0], np.float32), axis, -1) + np.arange(case.shapes[0][axis])
    places = np.moveaxis(places, -1, axis).astype(np.float32)
    found, turned = (
        engines.make("onnxruntime", net, **OPTIONS).tops({**inputs, "in0": x})[-1][0] for x in (places, 2 * places + 1)
    )
    if found is None or turned is None or not np.allclose(2 * found + 1, turned, atol=1e-3):
        return  # it does not move values
    if np.allclose(found, np.rint(found), atol=1e-3):
        return
    furthest, declared = float(found.max()), layer.position_extent(*case.shapes)
    summed = count([case.shapes[0][axis] for axis in layer.summed_axes(len(case.shapes[0]))])
    enough = max(ROUNDINGS * declared, FACTOR * summed**0.5) >= ROUNDINGS * furthest
    assert enough, f"the layer takes values at places up to {furthest:.3g}, position_extent is {declared}"
