"""What layers write, compared between two sides, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bridge import engines
from bridge.caffe_files.assemble import overwritten
from bridge.caffe_files.inference import inference_net, select_outputs
from bridge.engines import Arrays
from bridge.engines.pieces import PartialEngine
from bridge.errors import BridgeError
from bridge.schema import Net, times
from bridge.schema.hooks import DetectionRows
from bridge.verification.compare import Limits, metrics, same_bits
from bridge.verification.detections import row_metrics
from bridge.verification.inputs import Recorded, range_text
from bridge.verification.results import DIFFERENT, SAME, SKIPPED, Metrics, OutputsResult, TopResult, plural
from bridge.verification.segments import Place, Runner, Segment, segment, sources
from bridge.verification.stream import PlacedValues, StreamedValues, groups
from bridge.verification.tolerance import BoundedTops, Tolerances, bounds, fallback


class Side(NamedTuple):
    """Somebody's values for the tops of a net, as far as they can be seen.

    Attributes:
        name: What to call it.
        values: By place; the net's inputs as well.
        by_numpy: Indices of the layers that an engine lacks, and that NumPy computed in its place.
        notes: What the engine did not compute itself, one line each.
    """

    name: str
    values: Mapping[Place, np.ndarray]
    by_numpy: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def engine_side(name: str, net: Net, inputs: Arrays, options: Mapping[str, object]) -> Side:
    """Run a net in an engine, as far as it has the net's layers.

    A net whose tops take much memory is run a few layers at a time, where the engine can.

    Raises:
        MissingExtraError: The engine does not work here.
        UnsupportedLayerError: It cannot run the net.
        ModelError: The net does not fit the inputs.
    """
    runs = groups(net, inputs)
    engine = engines.make_partial(name, net, **options)
    by_numpy, lost, notes = _lacks(name, net, engine)
    if len(runs) > 1 and engines.find(name).piecewise and not lost:
        streamed = StreamedValues(net, _places(net, inputs), runs, Runner(net, name, options).run)
        return Side(name, streamed, by_numpy, notes)
    tops = engine.tops(inputs)
    values = {
        Place(index, top): array
        for index, arrays in enumerate(tops)
        if not net.layers[index].is_input
        for top, array in enumerate(arrays)
        if array is not None
    }
    return Side(name, {**_places(net, inputs), **values}, by_numpy, notes)


def _lacks(name: str, net: Net, engine: engines.Engine) -> tuple[frozenset[int], frozenset[int], tuple[str, ...]]:
    """Which of the layers that an engine lacks NumPy computes, and which nobody does, with a remark for each kind."""
    if not isinstance(engine, PartialEngine):
        return frozenset(), frozenset(), ()
    notes = []
    if engine.by_numpy:
        labels = ", ".join(net.layers[index].label for index in sorted(engine.by_numpy))
        notes.append(f"engine {name} lacks {labels}: NumPy computed what it lacks")
    if engine.lost:
        first, *others = sorted(engine.lost)
        more = f", and {plural(len(others), 'layer')} that it lacks or that depend on such" if others else ""
        notes.append(f"engine {name} lacks {net.layers[first].label}{more}: not compared with it")
    return engine.by_numpy, engine.lost, tuple(notes)


def served(net: Net, outputs: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> Net:
    """What is run of a net: all that serves inference, or what leads to some of its blobs."""
    return inference_net(select_outputs(net, outputs, shapes) if outputs else net, shapes)


def no_engine(net: Net, engine_names: Sequence[str]) -> str:
    """Why no engine is used, where none was asked for; empty if some are."""
    lacking = [layer.label for layer in net if layer.uncovered]
    if lacking:
        number = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return f"no engine was used: there are no weights for {lacking[0]}{number}"
    hint = engines.where_to_get_another("")
    return "" if engine_names else f"no engine works here: outputs were not compared ({hint})"


def cut_short(sides: Sequence[Side], needed: Collection[str]) -> list[str]:
    """A remark for each side that could not be run to its end, a few layers at a time.

    Raises:
        BridgeError: One whose name is among ``needed`` could not.
    """
    lines = []
    for side in sides:
        problem = side.values.problem if isinstance(side.values, StreamedValues) else None
        if problem is not None and side.name in needed:
            raise problem
        if problem is not None:
            lines.append(f"{side.name} did not run the net to its end: {problem.args[0]}")
    return lines


def recorded_side(recorded: Recorded, net: Net) -> Side:
    """What a file records: of a blob that is written in place, the last value, unless it has more."""
    homes: dict[Place, tuple[Mapping[str, np.ndarray], str]] = {}
    tops = {
        Place(index, place): (layer, top)
        for index, layer in enumerate(net.layers)
        for place, top in enumerate(() if layer.is_input else layer.tops)
    }
    for place, (layer, top) in tops.items():
        if (name := f"{layer.name}:{top}") in recorded.tops:
            homes[place] = recorded.tops, name
        elif top in recorded.blobs and net.flow.last[top] == place:
            homes[place] = recorded.blobs, top

    def read(part: Segment, _: PlacedValues) -> dict[Place, np.ndarray]:
        return {place: arrays[name] for place, (arrays, name) in homes.items() if place.layer in part.layers}

    runs = groups(net, recorded.inputs)
    return Side(recorded.name, StreamedValues(net, _places(net, recorded.inputs), runs, read, tops.keys() - homes))


def records(net: Net, side: Side, inputs: Arrays) -> dict[str, np.ndarray]:
    """The arrays of a side under the keys of a recorded file."""
    found = {f"in:{name}": array for name, array in inputs.items()}
    last = {top: (index, place) for index, layer in enumerate(net.layers) for place, top in enumerate(layer.tops)}
    for (index, place), array in side.values.items():
        if index < 0:
            continue
        layer = net.layers[index]
        top = layer.tops[place] if place < len(layer.tops) else ""
        if last.get(top) != (index, place):
            found[f"top:{layer.name}:{top}"] = array
        else:
            found[f"{'out' if top in net.outputs else 'blob'}:{top}"] = array
    return found


def _places(net: Net, inputs: Arrays) -> dict[Place, np.ndarray]:
    found = {Place(-1, index): inputs[name] for index, name in enumerate(net.inputs) if name in inputs}
    return {place: np.asarray(array, np.float32) for place, array in found.items()}


def values_by_name(net: Net, other: Net, side: Side) -> dict[Place, np.ndarray]:
    """The values of another net, placed where this net has a layer of the same name."""
    homes = {layer.name: index for index, layer in enumerate(net.layers)}
    inputs = list(net.inputs)
    found = {}
    for (index, top), array in side.values.items():
        if index >= 0 and other.layers[index].name in homes:
            found[Place(homes[other.layers[index].name], top)] = array
        elif index < 0 and (name := list(other.inputs)[top]) in inputs:
            found[Place(-1, inputs.index(name))] = array
    return found


def uncompared_outputs(net: Net, results: Sequence[OutputsResult]) -> list[str]:
    """A line for each comparison in which an output of the net could not be compared.

    An engine may lack what another one has: then it is enough that the output was compared with that one.
    """
    last = {top: layer.name for layer in net.layers for top in layer.tops}
    ends = {(last[name], name) for name in net.outputs if name in last}
    seen = {(top.layer, top.top) for result in results for top in result.tops if top.status != SKIPPED}
    lines = []
    for result in results:
        wanted = ends - (seen if result.b in engines.ENGINES else set())
        left = [top for top in result.tops if top.status == SKIPPED and (top.layer, top.top) in wanted]
        if left:
            names = ", ".join(f"'{top.top}'" for top in left)
            noun = "output" if len(left) == 1 else "outputs"
            lines.append(f"{noun} {names} not compared with {result.b}: {left[0].why}")
    return lines


def compare_layers(
    net: Net, comparisons: Sequence[Comparison], done: Callable[[int], None] = lambda _: None
) -> list[OutputsResult]:
    """Run comparisons side by side, layer by layer, so that values that were compared can be freed.

    Args:
        net: The net.
        comparisons: Of its tops.
        done: Is told of each layer before it is compared, as long as what it reads is there.
    """
    found: list[list[TopResult]] = [[] for _ in comparisons]
    for index in range(len(net.layers)):
        done(index)
        for comparison in comparisons:
            comparison.free_read(index, comparisons)
        for tops, comparison in zip(found, comparisons, strict=True):
            tops += comparison.layer(index)
    return [comparison.result(tops) for tops, comparison in zip(found, comparisons, strict=True)]


class Comparison:
    """Compares what two sides have for the tops of one net.

    Where the bound of a layer is passed, the layer is run alone on the inputs that side
    ``b`` had, so that what earlier layers carry in is told from what the layer does.

    Args:
        net: The net.
        runner: Runs pieces of it in the engine of side ``a``; ``None`` where no engine can.
        a: One side.
        b: The other.
        given: Tolerances of the user; without them bounds follow from the layers.
        isolate: Run each layer on its own even where it is within its bound.
        seed: For the bounds.
    """

    def __init__(
        self, net: Net, runner: Runner | None, a: Side, b: Side, *, given: Tolerances, isolate: bool, seed: int
    ) -> None:
        self.net, self.runner, self.reads = net, runner, sources(net)
        self.a, self.b, self.given, self.isolate, self.seed = a, b, given, isolate, seed
        self._known: tuple[int, BoundedTops | BridgeError] = (-1, BoundedTops({}, dict))
        self._equal: dict[Place, bool] = {}

    def run(self) -> OutputsResult:
        """Compare every top of every layer."""
        return compare_layers(self.net, [self])[0]

    def result(self, tops: Sequence[TopResult]) -> OutputsResult:
        """The result, from those of all layers."""
        return OutputsResult(self.a.name, self.b.name, tuple(tops))

    def free_read(self, index: int, comparisons: Sequence[Comparison]) -> None:
        """Free what a layer read on side a, if no later layer reads it there and the other sides have it."""
        if isinstance(self.a.values, StreamedValues):
            others = [comparison.b.values for comparison in comparisons if comparison.a is self.a]
            self.a.values.free_read(index, lambda place: all(place in values for values in others))

    def layer(self, index: int) -> list[TopResult]:
        """Compare every top of one layer."""
        layer = self.net.layers[index]
        found = [] if layer.is_input else [self._top(index, top) for top in range(len(layer.tops))]
        self._known = (-1, BoundedTops({}, dict))
        return found

    def _top(self, index: int, top: int) -> TopResult:
        layer, place = self.net.layers[index], Place(index, top)
        x, y = self.a.values.get(place), self.b.values.get(place)
        subject = TopResult(layer.name, layer.type, layer.tops[top], x.shape if x is not None else ())
        if x is None or y is None:
            unseen = self.a.name if x is None else self.b.name
            return replace(subject, status=SKIPPED, why=f"{unseen} does not show it")
        if index in self.a.by_numpy & self.b.by_numpy:
            return replace(subject, status=SKIPPED, why="NumPy computed it on both sides")
        self._equal[place] = same_bits(x, y) and x.shape == y.shape
        if self._equal[place] and not self.isolate:
            return replace(subject, metrics=Metrics(count=x.size), bound="equal to the last bit")
        compare = self._compare_values if x.shape == y.shape or self._rows(place) else self._compare_shapes
        result = compare(replace(subject, since=self._since(index)), place, x, y)
        return replace(result, inputs=self._inputs(index)) if result.status == DIFFERENT else result

    def _compare_values(self, subject: TopResult, place: Place, x: np.ndarray, y: np.ndarray) -> TopResult:
        given = self.given.of(subject.top)
        if given is None and self.runner is None:
            given = fallback(y)
        if given is not None and (not self.isolate or self.runner is None):
            found = self._measured(place, x, y, given.bound(y).values)
            status = DIFFERENT if found.mismatches else SAME
            return replace(subject, status=status, metrics=found, bound=given.bound(y).why)
        evaluation = self._alone(place[0])
        if isinstance(evaluation, BridgeError):
            return self._unrun(subject, evaluation)
        bound = given.bound(y) if given is not None else evaluation.bounds[place]
        found = self._measured(place, x, y, bound.values)
        result = replace(subject, metrics=found, bound=bound.why)
        if not found.mismatches and not self.isolate:
            return result
        try:
            alone = self._measured(place, evaluation.tops[place], y, bound.values)
        except BridgeError as error:
            return self._unrun(subject, error)
        carried = "within the bound on equal inputs; the rest is carried in by earlier layers"
        status, why = (DIFFERENT, "") if alone.mismatches else (SAME, carried if found.mismatches else "")
        return replace(result, status=status, alone=alone, why=why)

    def _unrun(self, subject: TopResult, error: BridgeError) -> TopResult:
        why = f"the layer cannot run on the inputs of {self.b.name}: {error.args[0]}"
        return replace(subject, status=SKIPPED, why=why)

    def _rows(self, place: Place) -> DetectionRows | None:
        return self.net.layers[place.layer].detections(place.top)

    def _measured(self, place: Place, x: np.ndarray, y: np.ndarray, bound: Limits) -> Metrics:
        """How far two values of a top are apart; all of it where their shapes are not the same."""
        rows = self._rows(place)
        if rows is not None and x.ndim == y.ndim and x.shape[-1] == y.shape[-1]:
            return row_metrics(rows, x, y, bound)
        return metrics(x, y, bound) if x.shape == y.shape else Metrics(x.size, x.size)

    def _compare_shapes(self, subject: TopResult, place: Place, x: np.ndarray, y: np.ndarray) -> TopResult:
        """Whether results of different shapes come from inputs of different shapes only."""
        why = f"shape {times(x.shape)} against {times(y.shape)}"
        evaluation = self._alone(place[0])
        clean = None if isinstance(evaluation, BridgeError) else self._shown_alone(evaluation, place)
        if isinstance(evaluation, BridgeError) or clean is None or clean.shape != y.shape:
            return replace(subject, status=DIFFERENT, why=why)
        bound = evaluation.bounds[place]
        alone = metrics(clean, y, bound.values)
        status = DIFFERENT if alone.mismatches else SAME
        return replace(subject, status=status, alone=alone, bound=bound.why, why=f"{why}, as earlier layers have it")

    @staticmethod
    def _shown_alone(evaluation: BoundedTops, place: Place) -> np.ndarray | None:
        """A top of the layer that was run alone, if it can be run and has a bound."""
        with contextlib.suppress(BridgeError):
            return evaluation.tops.get(place) if place in evaluation.bounds else None
        return None

    def _alone(self, index: int) -> BoundedTops | BridgeError:
        """What side a's engine makes of side b's values before a layer, and the bounds; or why it cannot."""
        if self._known[0] != index and self.runner is not None:
            part = self._segment(index)
            values = {place: self.b.values[place] for place in part.inputs}
            try:
                self._known = (index, bounds(self.runner, part, values, self.seed + index))
            except BridgeError as error:
                self._known = (index, error)
        return self._known[1]

    def _segment(self, index: int) -> Segment:
        """The layers that lead from what side b shows to the layer's result."""
        return segment(index, self.reads, lambda place: place in self.b.values)

    def _since(self, index: int) -> tuple[str, ...]:
        return tuple(self.net.layers[before].name for before in self._segment(index).layers[:-1])

    def _inputs(self, index: int) -> tuple[str, ...]:
        """Each bottom of a layer: extents, range, and whether the sides had the same."""
        lines = []
        writers, _ = overwritten(self.net.layers)
        for name, place in zip(self.net.layers[index].bottoms, self.reads[index], strict=True):
            if place not in self.a.values:
                lines.append(f"{name}: not known")
            elif place not in self.b.values:
                x = self.a.values[place]
                lines.append(f"{name}: {times(x.shape)}, {range_text(x)}; {self.b.name} does not show it")
            else:
                y = self.b.values[place]  # side a may have freed its own
                same = "equal on both sides" if self._same(place, y) else "not quite equal"
                late = f"; in Caffe {writer.label} wrote over it" if (writer := writers.get((index, name))) else ""
                lines.append(f"{name}: {times(y.shape)}, {range_text(y)}, {same}{late}")
        return tuple(lines)

    def _same(self, place: Place, y: np.ndarray) -> bool:
        """Whether side a had the same bits as side b, as the comparison of the layer that wrote them has found."""
        if place not in self._equal:
            x = self.a.values[place]
            self._equal[place] = x.shape == y.shape and same_bits(x, y)
        return self._equal[place]
