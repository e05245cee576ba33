"""An exported model, run before it is written: against a second engine, or against recorded outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bridge import engines
from bridge.engines import Arrays
from bridge.errors import BridgeError, DifferenceError, UnsupportedLayerError, UsageError
from bridge.onnx_export.builder import CUSTOM_DOMAIN, HALF_MAX
from bridge.onnx_export.dims import fits, label
from bridge.onnx_export.file import OnnxFile
from bridge.onnx_export.graph import Graph
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Net, Shape, times
from bridge.schema.hooks import DetectionRows
from bridge.verification.compare import Limits, metrics
from bridge.verification.detections import row_metrics
from bridge.verification.inputs import Recorded, make_inputs
from bridge.verification.outputs import Comparison, Side, engine_side, recorded_side
from bridge.verification.results import DIFFERENT
from bridge.verification.segments import Place, Runner, Segment
from bridge.verification.stream import StreamedValues, groups
from bridge.verification.tolerance import Tolerances, fallback, half_given, half_tolerances

_ME = "the exported model"
_HINT = "nothing was written; --no-check writes it all the same"


def check_export(
    file: OnnxFile,
    graph: Graph,
    net: Net,
    *,
    seed: int = 0,
    recorded: str | Path | None = None,
    preprocess: Preprocess | None = None,
) -> list[str]:
    """Run a model, and compare what it puts out.

    One in float16 is compared with the same net in float32, so that one is to be checked as well.

    Args:
        file: The model.
        graph: How it was made.
        net: What it was made from, in its form for inference.
        seed: For the inputs, where none are recorded. Open extents are one larger there than the net's own.
        recorded: ``.npz`` file of recorded inputs and outputs to compare with; by default the engine Chainer.
        preprocess: What the model does to its image input first.

    Returns:
        Remarks: what was not checked, and why.

    Raises:
        DifferenceError: The outputs differ; names the first layer that does.
        ModelError: ONNX Runtime refuses the model.
        UsageError: The recorded arrays do not fit the model.
    """
    if CUSTOM_DOMAIN in graph.builder.domains:
        return [f"not run: no runtime here knows the nodes of {CUSTOM_DOMAIN}"]
    if problem := engines.missing("onnxruntime"):
        return [f"not run: {problem.args[0]}"]
    try:
        return _Check(file, net, graph, preprocess, seed, recorded).run()
    except UnsupportedLayerError as error:
        return [f"not run: {error.args[0]}"]


class _Check:
    """One check under way."""

    def __init__(
        self,
        file: OnnxFile,
        net: Net,
        graph: Graph,
        preprocess: Preprocess | None,
        seed: int,
        recorded: str | Path | None,
    ) -> None:
        self.file, self.net, self.graph, self.seed = file, net, graph, seed
        self.preprocess = preprocess or Preprocess()
        self.recorded = Recorded(recorded) if recorded is not None else None
        if self.recorded is not None:
            self.recorded.check(net)
            self.inputs = {name: self.recorded.inputs[name] for name in net.inputs}
            self.fed = self._changed(self.inputs, self.preprocess.undo)
            self._check_fit(self.recorded.name)
            self._check_bytes(self.recorded.name)
        else:
            shapes = self._extents()
            made = make_inputs(
                net, given={name: self._net_shape(name, shape) for name, shape in shapes.items()}, seed=seed
            )
            self.fed = {
                name: self.preprocess.example(x, shapes[name], seed) if name in graph.prepared else x
                for name, x in made.items()
            }
            self.inputs = self._changed(self.fed, self.preprocess.apply)

    def _changed(self, arrays: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        return {name: change(array) if name in self.graph.prepared else array for name, array in arrays.items()}

    def _net_shape(self, name: str, shape: Shape) -> Shape:
        return self.preprocess.net_shape(shape) if name in self.graph.prepared else shape

    def _extents(self) -> dict[str, Shape]:
        """One more than the net's own wherever the model leaves it open, if the net allows that at once."""
        own = {name: tuple(self.graph.builder.shapes[name].extents) for name in self.graph.inputs}
        more = {
            name: tuple(n + isinstance(extent, str) for n, extent in zip(own[name], extents, strict=True))
            for name, extents in self.graph.inputs.items()
        }
        try:
            self.net.infer({name: self._net_shape(name, shape) for name, shape in more.items()})
        except BridgeError:
            return own
        return more

    def _check_fit(self, where: str) -> None:
        for name, extents in self.graph.inputs.items():
            if not fits(self.fed[name].shape, extents, {}):
                found = times(self.fed[name].shape)
                message = f"input '{name}' is {found}, the model takes {label(extents)}"
                raise UsageError(message, where=where, hint="--input sets the extents of inputs, or leaves them open")

    def _check_bytes(self, where: str) -> None:
        """Demand that the recorded input comes from 8-bit pixels, if that is what the model takes."""
        for name in self.graph.bytes:
            if not self.preprocess.gives(self.fed[name], self.inputs[name]):
                raise UsageError(
                    f"input '{name}' does not come from 8-bit pixels by this mean and scale",
                    where=where,
                    hint="leave --uint8 out, or record the input of an 8-bit image",
                )
            self.inputs[name] = self.preprocess.apply(self.fed[name])

    def _check_prepared(self, outputs: dict[str, np.ndarray]) -> None:
        """Compare what the model makes of the image with NumPy's; the net is then compared on the model's.

        Else a place between two pixels, rounded in another way, would look like an error of the first layer.
        """
        for name, value in self.graph.prepared.items():
            found = outputs[value] if value in self.graph.outputs else outputs.pop(value)
            wanted, bound = self.inputs[name], self.preprocess.bound(self.fed[name])
            if found.shape != wanted.shape or not np.allclose(found, wanted, 1e-5, bound, equal_nan=True):
                message = f"the preprocessing of input '{name}' in {_ME} differs from NumPy's"
                raise DifferenceError(message, where=self.net.where, hint=_HINT)
            self.inputs[name] = found

    @np.errstate(all="ignore")
    def run(self) -> list[str]:
        """Random numbers may well lie outside a function's domain; both sides give the same then."""
        outputs = self._run_model(
            tuple(value for value in self.graph.prepared.values() if value not in self.graph.outputs)
        )
        self._check_prepared(outputs)
        self._check_shapes(outputs)
        if self.graph.half:
            return self._against_float32(outputs)
        if self.recorded is not None:
            return self._against_recorded(outputs, self.recorded)
        return self._against_chainer(outputs)

    def _run_model(self, more: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        from bridge.engines.onnxruntime import RuntimeSession

        return {
            name: np.asarray(array, np.float32) for name, array in RuntimeSession(self.file, more)(self.fed).items()
        }

    def _check_shapes(self, outputs: Arrays) -> None:
        """Demand the extents that the model promises."""
        sizes = {
            str(extent): size
            for name, extents in self.graph.inputs.items()
            for extent, size in zip(extents, self.fed[name].shape, strict=True)
        }
        for name, extents in self.graph.outputs.items():
            if not fits(outputs[name].shape, extents, sizes):
                found = times(outputs[name].shape)
                message, expected = f"output '{name}' of the exported model", label(extents)
                raise DifferenceError(message, where=self.net.where, found=found, expected=expected, hint=_HINT)

    # -- the other side ----------------------------------------------------------------------------

    def _against_recorded(self, outputs: dict[str, np.ndarray], recorded: Recorded) -> list[str]:
        if not {self._blob(name) for name in outputs} & recorded.blobs.keys():
            raise UsageError(f"records none of the outputs {', '.join(outputs)}", where=recorded.name)
        if self._agree(outputs, recorded.blobs):
            return []
        runner, other = Runner(self.net, "onnxruntime", {}), recorded_side(recorded, self.net)
        self._compare_layers(runner, self._layer_side(self.net), other, recorded.name)
        self._compare_whole(runner, outputs, other, recorded.name)
        return []

    def _against_chainer(self, outputs: dict[str, np.ndarray]) -> list[str]:
        if problem := engines.missing("chainer"):
            return [f"run, but not compared with a second engine: {problem.args[0]}"]
        net, left_out = _computable(self.net)
        remarks = [f"not compared, as Chainer has no such layer: {', '.join(left_out)}"] if left_out else []
        if left_out:
            outputs = {**self._run_model(self._ends(net)), **outputs}
        expected = engines.make_partial("chainer", net).outputs(self.inputs)
        if self._agree(outputs, expected):
            return remarks
        runner, other = Runner(net, "chainer", {}), engine_side("chainer", net, self.inputs, {})
        self._compare_layers(runner, other, self._layer_side(net), "Chainer")
        self._compare_whole(runner, outputs, other, "Chainer")
        return remarks

    def _against_float32(self, outputs: dict[str, np.ndarray]) -> list[str]:
        """Where outputs are apart, run each layer on its own, on what it read in the model."""
        expected = engines.make("onnxruntime", self.net).outputs(self.inputs)
        if self._agree(outputs, expected):
            return []
        side = self._layer_side(self.net)
        other = engine_side("onnxruntime", self.net, self.inputs, {})
        tolerances = half_tolerances(self.net, side.values)
        self._compare_layers(Runner(self.net, "onnxruntime", {}), other, side, "float32", tolerances)
        listed = ", ".join(f"'{name}' {self._apart(name, outputs[name], expected)}" for name in outputs)
        return [f"rounding to float16 adds up; outputs differ from those in float32: {listed}"]

    def _apart(self, name: str, values: np.ndarray, expected: Arrays) -> str:
        """How far an output is from what it is in float32, in words."""
        wanted = expected[self._blob(name)]
        rows = self._rows(name)
        if rows is not None:
            return f"({row_metrics(rows, wanted, values, self._bound(values)).rows})"
        if values.shape != wanted.shape:
            return f"({times(values.shape)} in place of {times(wanted.shape)})"
        return f"by {metrics(values, wanted, 1).max_abs:.2g}"

    def _rows(self, output: str) -> DetectionRows | None:
        place = self.net.flow.last[self._blob(output)]
        return self.net.layers[place.layer].detections(place.top) if place.layer >= 0 else None

    def _blob(self, output: str) -> str:
        return self.graph.blobs.get(output, output)

    def _agree(self, outputs: Arrays, expected: Arrays) -> bool:
        """Whether all outputs are as the project promises: then nothing more has to be looked at."""
        pairs = [
            (values, expected[self._blob(name)]) for name, values in outputs.items() if self._blob(name) in expected
        ]
        if self.graph.half:
            pairs = [(values, np.clip(wanted, -HALF_MAX, HALF_MAX)) for values, wanted in pairs]
        return all(a.shape == b.shape and not metrics(a, b, self._bound(b)).mismatches for a, b in pairs)

    def _bound(self, expected: np.ndarray) -> Limits:
        return (half_given if self.graph.half else fallback)(expected).bound(expected).values

    def _compare_layers(
        self, runner: Runner, a: Side, b: Side, name: str, tolerances: Tolerances | None = None
    ) -> None:
        """Find the first layer that differs more than its own rounding explains."""
        given = tolerances or Tolerances()
        compared = Comparison(runner.net, runner, a, b, given=given, isolate=tolerances is not None, seed=self.seed)
        for top in compared.run().tops:
            if top.status == DIFFERENT:
                raise DifferenceError(f"{_ME} differs from {name}: {top}", where=self.net.where, hint=_HINT)

    def _compare_whole(self, runner: Runner, outputs: Arrays, other: Side, name: str) -> None:
        """Every layer is right alone. So are the outputs, if rounding on the whole way explains them."""
        net = runner.net
        mine = Side(_ME, self._values(outputs, net))
        last = {top: (index, place) for index, layer in enumerate(net.layers) for place, top in enumerate(layer.tops)}
        ends = {last[self._blob(output)] for output in outputs if self._blob(output) in last}
        seen = {place: array for place, array in other.values.items() if place[0] < 0 or place in ends}
        compared = Comparison(
            net, runner, mine, Side(other.name, seen), given=Tolerances(), isolate=False, seed=self.seed
        )
        for top in compared.run().tops:
            if top.metrics is not None and top.metrics.mismatches:
                message = f"{_ME} as a whole differs from {name}, though no layer of it does: {top}"
                raise DifferenceError(message, where=self.net.where, hint=_HINT)

    # -- what the model shows ----------------------------------------------------------------------

    def _ends(self, net: Net) -> tuple[str, ...]:
        """The values of the model that are outputs of a part of the net, and not its own."""
        names = self._names(net)
        ends = (names.get(net.flow.last[name]) for name in net.outputs)
        return tuple(name for name in dict.fromkeys(ends) if name and name not in self.graph.outputs)

    def _names(self, net: Net) -> dict[Place, str]:
        """What the model calls the tops of the net, or of a part of it, that its nodes compute."""
        made = {name for node in self.graph.builder.nodes for name in node.outputs}
        tops = {id(layer): names for layer, names in zip(self.net.layers, self.graph.tops, strict=True)}
        return {
            Place(index, top): name
            for index, layer in enumerate(net.layers)
            for top, name in enumerate(() if layer.is_input else tops[id(layer)])
            if name in made
        }

    def _values(self, shown: Arrays, net: Net) -> dict[Place, np.ndarray]:
        """Values of the model by their place in the net, or in a part of it."""
        values = {Place(-1, place): self.inputs[name] for place, name in enumerate(net.inputs)}
        values.update({place: shown[name] for place, name in self._names(net).items() if name in shown})
        return values

    def _layer_side(self, net: Net) -> Side:
        """What the model makes of the tops of the net, or of a part of it, a few layers at a time."""
        names, inputs = self._names(net), {name: self.graph.prepared.get(name, name) for name in net.inputs}
        read = {**{Place(-1, place): name for place, name in enumerate(inputs.values())}, **names}

        def compute(part: Segment, values: Mapping[Place, np.ndarray]) -> dict[Place, np.ndarray]:
            known = {read[place]: values[place] for place in part.inputs}
            tops = {place: name for place, name in names.items() if place.layer in part.layers}
            made = self._run_part(known, {name for name in tops.values() if name not in known})
            return {place: known[name] if name in known else made[name] for place, name in tops.items()}

        places = {Place(index, top) for index, layer in enumerate(net.layers) for top, _ in enumerate(layer.tops)}
        hidden = {place for place in places - names.keys() if not net.layers[place.layer].is_input}
        fed = {name: self.inputs[name] for name in inputs}
        values = {place: fed[name] for place, name in zip(read, inputs, strict=False)}
        return Side(_ME, StreamedValues(net, values, groups(net, fed), compute, hidden))

    def _run_part(self, known: Arrays, wanted: set[str]) -> dict[str, np.ndarray]:
        """Values of the model, by the nodes that lead to them from others."""
        from bridge.engines.onnxruntime import RuntimeSession

        if not wanted:
            return {}
        half = self.graph.half
        known = {name: array.astype(np.float16) if name in half else array for name, array in known.items()}
        found = RuntimeSession(self.file.between(known, sorted(wanted)), in_pieces=True)(known)
        return {name: np.asarray(array, np.float32) for name, array in found.items()}


def _computable(net: Net) -> tuple[Net, list[str]]:
    """The part of the net that Chainer, or NumPy in its place, can run; and the labels of the layers left out."""
    lost: set[str] = set()
    kept, left_out = [], []
    for layer in net.layers:
        if lost.intersection(layer.bottoms) or not (layer.has_chainer or layer.has_numpy):
            lost.update(layer.tops)
            left_out.append(layer.label)
        else:
            lost.difference_update(layer.tops)
            kept.append(layer)
    return (dataclasses.replace(net, layers=tuple(kept)) if left_out else net), left_out
