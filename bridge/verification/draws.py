"""Several draws of random inputs, chosen so that every threshold of a layer is met on both sides.

One draw of standard normal numbers rarely exceeds 6, so it cannot tell ReLU6 from ReLU. The draws here are
standard normal numbers; whole numbers, which meet thresholds exactly and make ties in pooling windows; negative
numbers only, which show what a pooling does at its borders; and numbers of other scales, as long as a threshold
of some layer was not met on both sides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.schema import Net, Shape, times
from bridge.verification.compare import metrics
from bridge.verification.inputs import Range, make_inputs
from bridge.verification.outputs import Side
from bridge.verification.results import DIFFERENT, SAME, SKIPPED, OutputsResult, TopResult
from bridge.verification.segments import Place, Runner, sources
from bridge.verification.stream import PlacedValues
from bridge.verification.tolerance import Bound, bounds

if TYPE_CHECKING:
    from bridge.verification.graphs import LayerRun

DRAWS = 6
"""How many draws are compared by default, at most; the last three only while a threshold was not met."""
SATURATED = 1e-6
"""A probability this close to 1 hides what comes before it."""
_LISTED = 5

Draw = Callable[[np.random.Generator, Shape], Any]
Done = Callable[[int, PlacedValues], None]
"""Is told of a layer, by its index, that was compared, with one side's values as far as they are in memory."""


def _normal(scale: float) -> Draw:
    return lambda rng, shape: scale * rng.standard_normal(shape, np.float32)


def _whole(rng: np.random.Generator, shape: Shape) -> Any:
    return np.rint(4 * rng.standard_normal(shape, np.float32))


def _negative(rng: np.random.Generator, shape: Shape) -> Any:
    return -4 * np.abs(rng.standard_normal(shape, np.float32))


_FIXED: tuple[Draw, ...] = (_whole, _negative)
_SCALED: tuple[Draw, ...] = tuple(_normal(scale) for scale in (16, 256, 1 / 16, 4096))
"""Draws of other scales, tried while a threshold was not met on both sides."""


def draw_inputs(
    net: Net, thresholds: Thresholds, *, given: Mapping[str, Any] | None, seed: int, value_range: Range | None
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs for each draw behind the first one.

    The caller counts each in ``thresholds``; draws of other scales are made while one was not met.

    Args:
        net: The net.
        thresholds: Which thresholds were met so far.
        given: What the user gave for inputs, as for :func:`make_inputs`.
        seed: Of the first draw.
        value_range: Bounds of uniform random numbers, which all draws have then.
    """
    unmet: list[int] = []  # before each draw of another scale
    for number, draw in enumerate((*_FIXED, *_SCALED), 1):
        if number > len(_FIXED):
            unmet.append(len(thresholds.unmet()))
            if not unmet[-1] or unmet[-3:].count(unmet[-1]) == 3:  # all are met, or two draws have met no more
                return
        yield make_inputs(net, given=given, seed=seed + number, value_range=value_range, draw=draw)


class Thresholds:
    """Which thresholds of the layers' inputs were met from both sides, and which inputs were the largest somewhere.

    Args:
        net: The net.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        reads = sources(net)
        self._reads = {index: reads[index][0] for index, layer in enumerate(net.layers) if layer.thresholds}
        self._met: dict[tuple[int, float], set[bool]] = {
            (index, value): set() for index in self._reads for value in net.layers[index].thresholds
        }
        self._peaks: dict[int, float] = {}
        self._rivals = {index: reads[index] for index, layer in enumerate(net.layers) if layer.takes_largest}
        self._largest: dict[int, set[int]] = {}

    def count(self, index: int, values: PlacedValues) -> None:
        """Count what a layer reads, and the probabilities that it writes, in one draw."""
        layer = self.net.layers[index]
        for threshold in layer.thresholds if index in self._reads else ():
            array, sides = values.get(self._reads[index]), self._met[index, threshold]
            if array is not None and array.size and len(sides) < 2:
                lowest, highest = np.fmin.reduce(array, axis=None), np.fmax.reduce(array, axis=None)
                sides.update(side for side, met in ((False, lowest < threshold), (True, highest > threshold)) if met)
        if index in self._rivals:
            self._count_rivals(index, [values.get(place) for place in self._rivals[index]])
        top = values.get(Place(index, 0)) if layer.probabilities else None
        if top is not None and top.size:
            # the sample that is least certain
            axis = 1 if top.ndim > 1 else 0
            peak = float(np.nan_to_num(top.max(axis=axis)).min())
            self._peaks[index] = min(self._peaks.get(index, 1.0), peak)

    def unmet(self) -> list[tuple[int, float]]:
        """Layers and thresholds that were not met from both sides; those whose input is not known are none of them."""
        return [key for key, sides in self._met.items() if len(sides) == 1]

    def _count_rivals(self, index: int, arrays: Sequence[np.ndarray | None]) -> None:
        known = [array for array in arrays if array is not None]
        met = self._largest.setdefault(index, set())
        if len(known) == len(arrays) and len(met) < len(known):
            highest = np.maximum.reduce(known)
            alone = sum((array == highest).astype(int) for array in known) == 1
            met.update(place for place, array in enumerate(known) if ((array == highest) & alone).any())

    def never_largest(self) -> list[tuple[int, int]]:
        """Layers that take the largest of their inputs, and the place of each input that was it nowhere."""
        rivals = self._rivals.items()
        return [
            (index, i) for index, reads in rivals for i in range(len(reads)) if i not in self._largest.get(index, ())
        ]

    def remarks(self) -> list[str]:
        """What the user should know: thresholds that no draw met, and probabilities that hide faults before them."""
        found = [f"{self.net.layers[index].label} at {value:g}" for index, value in self.unmet()]
        lines = []
        if found:
            more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            lines.append(f"values on one side only of the threshold of {', '.join(found[:_LISTED])}{more}")
        lines += [
            f"input '{self.net.layers[index].bottoms[place]}' of {self.net.layers[index].label} is nowhere the largest"
            for index, place in self.never_largest()
            if index in self._largest
        ]
        lines += [
            f"{self.net.layers[index].label} is saturated: it can hide faults of the layers before it"
            for index, peak in self._peaks.items()
            if peak > 1 - SATURATED and self._several(index)
        ]
        return lines

    def _several(self, index: int) -> bool:
        """Whether there is more than one class; a softmax of one class is 1 anyway."""
        outputs = [layer.outputs for layer in self.net.layers[:index] if layer.outputs]
        return not outputs or outputs[-1] != 1


def with_layers_alone(
    results: Sequence[OutputsResult],
    runner: Runner,
    thresholds: Thresholds,
    runs: Mapping[str, tuple[Side, LayerRun]],
    seed: int,
) -> list[OutputsResult]:
    """The results with what a comparison of single layers adds, for those sides whose layers can be run alone."""
    found = list(results)
    for place, result in enumerate(found):
        if result.b in runs:
            tops = compare_alone(runner.net, runner, thresholds, *runs[result.b], seed)
            found[place] = with_differences(result, tops.values())
    return found


def compare_alone(
    net: Net, runner: Runner, thresholds: Thresholds, side: Side, run: LayerRun, seed: int
) -> dict[Place, TopResult]:
    """Compare single layers on inputs that lie on both sides of their thresholds, and on them.

    For layers whose thresholds no draw met: behind a normalisation no input of the net may reach them.

    Args:
        net: The net.
        runner: Runs single layers on one side.
        thresholds: Which thresholds were met; those that are met here are counted.
        side: The other side, whose values have the shapes.
        run: Runs single layers there.
        seed: Of the random inputs.
    """
    found = {}
    for index in dict.fromkeys(index for index, _ in [*thresholds.unmet(), *thresholds.never_largest()]):
        part = runner.alone(index)
        if any(place not in side.values for place in part.inputs):
            continue
        values = {place: side.values[place] for place in part.inputs}
        rng = np.random.default_rng(seed + index)
        if net.layers[index].takes_largest:
            values = {place: rng.standard_normal(array.shape, np.float32) for place, array in values.items()}
        else:
            values.update(_around(net.layers[index].thresholds, part.inputs, values, rng))
        theirs = run(index, values)
        if theirs is None:
            continue
        thresholds.count(index, values)
        both = Side(side.name, {**values, **theirs})
        with contextlib.suppress(BridgeError):
            own = bounds(runner, part, values, seed + index)
            for place, bound in own.bounds.items():
                if place in theirs and place in own.tops:
                    found[place] = _compared(net, place, bound, own.tops[place], both.values[place])
    return found


def _around(
    levels: Sequence[float], places: Sequence[Place], values: PlacedValues, rng: np.random.Generator
) -> dict[Place, np.ndarray]:
    """Inputs of a layer: the first has values at each threshold and on both sides of it, the others stay."""
    first, shape = places[0], values[places[0]].shape
    steps = np.asarray([-1, 1, -0.01, 0.01, -30, 30], np.float32)
    exact = np.asarray(levels, np.float32)
    next_to = [
        np.nextafter(exact, np.float32(side)) for side in (-np.inf, np.inf)
    ]  # a threshold slightly off shows there
    chosen = np.concatenate([exact, *next_to, np.add.outer(exact, steps).reshape(-1)])
    return {first: rng.choice(chosen, shape).astype(np.float32)}


def _compared(net: Net, place: Place, bound: Bound, ours: np.ndarray, theirs: np.ndarray) -> TopResult:
    layer = net.layers[place.layer]
    result = TopResult(layer.name, layer.type, layer.tops[place.top], ours.shape, bound=bound.why)
    if ours.shape != theirs.shape:
        return replace(result, status=DIFFERENT, why=f"shape {times(ours.shape)} against {times(theirs.shape)}")
    alone = metrics(ours, theirs, bound.values)
    return replace(result, status=DIFFERENT if alone.mismatches else SAME, alone=alone)


class OutputValues:
    """Which outputs are NaN everywhere, or one value everywhere, in all draws.

    Args:
        net: The net.
    """

    def __init__(self, net: Net) -> None:
        self._places = {net.flow.last[name]: name for name in net.outputs}
        self._nan: dict[str, bool] = {}
        self._constant: dict[str, bool] = {}

    def count(self, index: int, values: PlacedValues) -> None:
        """Count the outputs that a layer writes in one draw."""
        for place, name in self._places.items():
            array = values.get(place) if place[0] == index else None
            if array is not None and array.size > 1:
                lowest, highest = array.min(), array.max()
                self._nan[name] = self._nan.get(name, True) and bool(np.isnan(lowest) and np.isnan(array).all())
                self._constant[name] = self._constant.get(name, True) and bool(lowest == highest)

    def remarks(self) -> list[str]:
        """A remark for each of them."""
        lines = []
        for name in self._places.values():
            if self._nan.get(name):
                lines.append(f"output '{name}' is NaN everywhere: that both sides agree proves nothing")
            elif self._constant.get(name):
                lines.append(f"output '{name}' has one value everywhere: that both sides agree proves little")
        return lines


def counting(*counters: Thresholds | OutputValues) -> Done:
    """One function that has each of them count."""

    def done(index: int, values: PlacedValues) -> None:
        for counter in counters:
            counter.count(index, values)

    return done


def merged(results: Sequence[OutputsResult]) -> list[OutputsResult]:
    """One result for each pair of sides: of each top the worst of all draws."""
    pairs: dict[tuple[str, str], list[OutputsResult]] = {}
    for result in results:
        pairs.setdefault((result.a, result.b), []).append(result)
    return [
        replace(
            several[0], tops=tuple(max(tops, key=_badness) for tops in zip(*(r.tops for r in several), strict=True))
        )
        for several in pairs.values()
    ]


def with_differences(result: OutputsResult, found: Iterable[TopResult]) -> OutputsResult:
    """The result with those tops that differ in another comparison of the same sides."""
    worse = {(top.layer, top.top): top for top in found if top.status == DIFFERENT}
    tops = [top if top.status == DIFFERENT else worse.get((top.layer, top.top), top) for top in result.tops]
    return replace(result, tops=tuple(tops))


def _badness(top: TopResult) -> tuple[int, float]:
    order = {DIFFERENT: 2, SKIPPED: 1}.get(top.status, 0)
    return order, top.decisive.ratio if top.decisive is not None else 0.0
