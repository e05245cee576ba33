"""The verification as a whole: what is compared with what, in which order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge import engines as engine_table
from bridge.caffe_files.inference import inference_net
from bridge.engines.sandbox import Sandbox
from bridge.errors import BridgeError, BudgetError, ModelError, UsageError
from bridge.files.atomic import refuse_sources
from bridge.files.load import Reading, reader_options
from bridge.schema import Net
from bridge.verification import draws as drawing
from bridge.verification import inputs as feeding
from bridge.verification.checks import run_checks
from bridge.verification.memory import HeldChain, HeldNet, chain_side, held_net, is_chain, read_all
from bridge.verification.outputs import (
    Comparison,
    Side,
    compare_layers,
    cut_short,
    engine_side,
    no_engine,
    recorded_side,
    records,
    served,
    uncompared_outputs,
    values_by_name,
)
from bridge.verification.parts import compare_keys, compare_nets
from bridge.verification.report import Report
from bridge.verification.results import SAME, OutputsResult, PartsResult, WeightsResult
from bridge.verification.segments import Runner
from bridge.verification.tolerance import Tolerance, Tolerances, half_tolerances
from bridge.verification.versions import versions
from bridge.verification.weights import Files, Loaded, compare_weights, stored_parts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bridge.verification.graphs import LayerRun

EngineOptions = Mapping[str, Mapping[str, Any]]


def verify(
    *files: str | Path | Net,
    against: str | Path | Sequence[str | Path] | Any = None,
    engines: Sequence[str] | None = None,
    readers: Sequence[str] | None = None,
    recorded: str | Path | None = None,
    record: str | Path | None = None,
    rtol: Tolerance = None,
    atol: Tolerance = None,
    seed: int = 0,
    isolate: bool = False,
    subset: bool = False,
    draws: int = drawing.DRAWS,
    value_range: feeding.Range | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
    save_inputs: str | Path | None = None,
    checks: Collection[str] | None = None,
    skip_checks: Collection[str] = (),
    engine_options: EngineOptions | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **reading: Unpack[Reading],
) -> Report:
    """Verify a model: its readers against each other, its engines, its consistency.

    Args:
        files: ``[PROTOTXT] WEIGHTS``, in any order; or a net in memory.
        against: A second model of that form, compared blob by blob; an ONNX file's own graph
            is run as well. Or a chain of your own, or a method of it such as ``model.features``: what its links
            are given and compute is compared with the layers of their names.
        engines: Names of engines; ``None`` is all that work here, ``()`` none.
        readers: Names of readers; ``None`` is all that work here, ``()`` compares none.
        recorded: ``.npz`` file of recorded inputs and outputs (``in:BLOB``, ``out:BLOB``,
            ``blob:BLOB``) to compare with.
        record: Write such a file from the first engine.
        rtol: Relative tolerance for outputs, as in :func:`numpy.allclose`: a number, or numbers by
            blob name with ``""`` for the others. By default the bound follows from each layer.
        atol: Absolute tolerance for outputs, likewise.
        seed: For random inputs.
        isolate: Run each layer on its own, on the other side's inputs.
        subset: Inputs, outputs, layers and arrays that only one side has are no difference.
        draws: How many draws of random inputs to compare, at most.
        value_range: Bounds of random inputs.
        inputs: Extents, or the array, of input blobs by name.
        outputs: Blobs to compute and to compare, with all that leads to them; by default all of the net.
        save_inputs: Write the inputs to this ``.npz`` file.
        checks: Names of the consistency checks to run; ``None`` is all, ``()`` none.
        skip_checks: Names of checks to leave out.
        engine_options: Options by engine name.
        progress: Is told what is being done.
        reading: How files are read, as of :func:`bridge.load`.

    Returns:
        The report: ``report.passed``, ``print(report)``, ``report.to_json()``,
        ``report.write_html(path)``.

    Raises:
        UsageError: An argument makes no sense.
        FormatError: A file cannot be read.
        MissingExtraError: A reader or engine that was asked for does not work here.
        BridgeError: One that was asked for cannot take this model.

    Source: docs/verify.md.
    """
    how = reader_options(reading)
    if (reader := how.pop("reader", "auto")) != "auto" and readers is None:
        readers = (reader,)
    python = {"pycaffe": {"python": how["python"]}} if "python" in how else {}
    options = {**python, **(engine_options or {})}
    run = _Run(held_net(files) or Files.of(files, how), progress, subset, outputs)
    run.read(None if readers is None else tuple(dict.fromkeys(readers)))
    if is_chain(against):
        run.against = HeldChain(against)
    elif against is not None:
        run.compare_with(held_net([against]) or Files.of(against, how))
    if checks is None or checks:
        run.check(checks, skip_checks, inputs)
    tolerances = Tolerances(rtol, atol)
    if engines is None or engines or recorded or record:
        run.feed(recorded, inputs, seed, feeding.parse_range(value_range))
        tolerances.check(run.net)
        if save_inputs and run.inputs:
            run.write(save_inputs, {f"in:{name}": array for name, array in run.inputs.items()})
        compare = {"given": tolerances, "isolate": isolate, "seed": seed}
        run.draws = draws
        with run.runtime:
            run.run_engines(None if engines is None else tuple(dict.fromkeys(engines)), options, compare, record)
    return run.report()


class _Run:
    """One verification under way."""

    def __init__(
        self, files: Files | HeldNet, progress: Callable[[str], None], subset: bool, selected: Sequence[str]
    ) -> None:
        self.files, self.progress, self.subset, self.selected = files, progress, subset, tuple(selected)
        self.parts: list[PartsResult] = []
        self.halves, self.refused, self.first = set[str](), set[str | Path](), ""
        self.draws, self.more = drawing.DRAWS, dict[str, Any]()
        self.drawn: list[str] = []
        self.layer_runs: dict[str, tuple[Side, LayerRun]] = {}
        self.runner: Runner | None = None
        self.runtime = Sandbox()
        self.sources: list[str | Path] = [*files.names] if isinstance(files, Files) else []
        self.against: Files | HeldNet | HeldChain | None = None
        self.other: Loaded | None = None
        self.inputs: dict[str, np.ndarray] = {}
        self.recorded: feeding.Recorded | None = None
        self.checked: list[Any] = []
        self.weights: list[WeightsResult] = []
        self.outputs: list[OutputsResult] = []
        self.remarks: list[str] = []
        self.undone: list[str] = []

    def read(self, names: tuple[str, ...] | None) -> None:
        """Read the model with every reader, and compare what they deliver."""
        self.progress(f"reading {self.files.weights}")
        self.loaded, self.weights, remarks = read_all(self.files, names)
        self.net = self.loaded.net
        self.remarks += [*self.net.notes, *remarks]

    def compare_with(self, other: Files | HeldNet) -> None:
        """Compare with the weights of a second model."""
        self.progress(f"reading {other.weights}")
        self.against = other
        self.sources += other.names if isinstance(other, Files) else ()
        names = (str(self.files.weights), str(other.weights))
        try:
            self.other = other.read(definition=self.files.definition)
        except BridgeError as error:
            if other.kind != "onnx":
                raise
            # An ONNX file that another tool wrote, or changed, has a graph to compare all the same.
            self.weights.append(WeightsResult(*names, why=str(error.args[0])))
            return
        self.remarks += [
            f"{other.weights}: {note}" for note in self.other.net.notes if note not in self.loaded.net.notes
        ]
        theirs = stored_parts(self.other)
        rounded = other.kind == "onnx" and any(part.blob and part.blob.dtype == np.float16 for part in theirs.values())
        if rounded:
            from bridge.verification.graphs import computes_in_half

            rounded = computes_in_half(other.weights)
        self.weights.append(compare_weights(stored_parts(self.loaded), theirs, names, rounded=rounded))
        if other.definition is not None or self.other.raw.complete:
            pair = inference_net(self.loaded.net), inference_net(self.other.net)
            self.parts.append(compare_nets(*pair, names, subset=self.subset))

    def write(self, path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays to a file that is none of those that are read."""
        refuse_sources(self.sources, [path])
        feeding.write_recorded(path, arrays)

    def report(self) -> Report:
        """What came out."""
        others = [str(self.against.weights)] if self.against else []
        others += [self.recorded.name] if self.recorded else []
        for other in others:
            results: list[WeightsResult | OutputsResult] = [*self.weights, *self.outputs]
            compared = any(r.compared for r in results if r.a.endswith(other) or r.b.endswith(other))
            if not self.undone and not compared:
                self.undone.append(f"nothing was compared with {other}")
        return Report(
            files=self.files.names,
            against=self.against.names if self.against else (),
            checked=tuple(self.checked),
            weights=tuple(self.weights),
            outputs=tuple(self.outputs),
            inputs=tuple(self.drawn) if self.outputs else (),
            remarks=tuple(dict.fromkeys(self.remarks)),
            undone=tuple(dict.fromkeys(self.undone)),
            versions=versions(),
            net=self.loaded.net,
            parts=tuple(self.parts),
        )

    def check(self, only: Collection[str] | None, skip: Collection[str], inputs: Any) -> None:
        """Run the consistency checks on each model, for inputs of the shapes that were given."""
        self.progress("checking consistency")
        given = {name: getattr(value, "shape", value) for name, value in (inputs or {}).items()}
        shapes = {name: tuple(value) for name, value in given.items() if isinstance(value, (tuple, list))}
        for loaded in [self.loaded, *([self.other] if self.other else [])]:
            self.checked.append(run_checks(loaded, only=only, skip=skip, shapes=shapes))

    def feed(self, recorded: str | Path | None, inputs: Any, seed: int, span: feeding.Range | None) -> None:
        """Find the net to run, and its inputs: recorded ones, or new ones."""
        shapes = {name: value for name, value in (inputs or {}).items() if isinstance(value, (tuple, list))}
        self.sources += [value for value in (recorded, *(inputs or {}).values()) if isinstance(value, (str, Path))]
        self.net = served(self.loaded.net, self.selected, shapes)
        self.remarks += self.net.notes[len(self.loaded.net.notes) :]
        if recorded is not None:
            if inputs or span:
                raise UsageError("inputs are recorded; they take no extents and no range", where=str(recorded))
            self.recorded = feeding.Recorded(recorded)
            self.recorded.check(self.net)
            self.parts.append(compare_keys(self.recorded, self.net, self.loaded.net, subset=self.subset))
            self.inputs = {name: self.recorded.inputs[name] for name in self.net.inputs}
            feeding.check_shapes(self.net, {name: array.shape for name, array in self.inputs.items()})
            return
        try:
            self.more = {"given": inputs, "seed": seed, "value_range": span}
            self.inputs = feeding.make_inputs(self.net, **self.more)
        except BudgetError:
            raise
        except BridgeError as error:
            if inputs:
                raise
            self.remarks.append(f"outputs were not compared: {error.args[0]} ({error.hint})")

    def run_engines(
        self, names: tuple[str, ...] | None, options: EngineOptions, compare: dict[str, Any], record: str | Path | None
    ) -> None:
        """Run the engines on each draw of inputs, and compare each other side with the first of them."""
        thresholds, ends = drawing.Thresholds(self.net), drawing.OutputValues(self.net)
        done = drawing.counting(thresholds, ends)
        for values in self._each_draw(thresholds):
            if not self._run_draw(names, options, compare, None if self.first else record, done):
                break
            self.drawn += feeding.describe_inputs(values)
        if not self.first:
            wishes = {"compared with what is recorded": self.recorded, "recorded": record}
            self.undone += [f"nothing can run the net here, so nothing was {w}" for w, wish in wishes.items() if wish]
            return
        self.outputs = drawing.merged(self.outputs)
        if self.more and self.runner is not None and not compare["given"].given:
            runs = self.layer_runs
            self.outputs = drawing.with_layers_alone(self.outputs, self.runner, thresholds, runs, compare["seed"])
        self.remarks += [*thresholds.remarks(), *ends.remarks()] if self.outputs else []
        self.undone += [] if self.subset else uncompared_outputs(self.net, self.outputs)
        if not self.outputs:
            self.remarks.append(
                f"{self.first} is all that can run the net here, and nothing is recorded: outputs were not compared "
                f"({engine_table.where_to_get_another(self.first)})"
            )

    def _each_draw(self, thresholds: drawing.Thresholds) -> Iterator[dict[str, np.ndarray]]:
        """The inputs of each draw; one only where they are recorded, or where all of them are given."""
        yield self.inputs
        given = self.more.get("given") or {}
        drawn = [name for name in self.inputs if not isinstance(given.get(name), (np.ndarray, Path))]
        if not self.more or not self.outputs or not drawn:
            return
        for number, values in enumerate(drawing.draw_inputs(self.net, thresholds, **self.more), 2):
            if number > self.draws:
                return
            self.inputs = values
            yield values

    def _run_draw(
        self,
        names: tuple[str, ...] | None,
        options: EngineOptions,
        compare: dict[str, Any],
        record: str | Path | None,
        done: drawing.Done,
    ) -> bool:
        """Compare all sides on one draw; whether anything can run the net."""
        fed = bool(self.inputs) or not self.net.inputs
        sides = list(self._engine_sides(names, options)) if fed else []
        runner = Runner(self.net, sides[0].name, options.get(sides[0].name, {})) if sides else None
        self.runner = runner
        sides += self._graph_sides() if fed else []
        if not sides:
            return False
        first, *others = sides
        self.first = first.name
        if record is not None:
            self.write(record, records(self.net, first, self.inputs))
        if self.recorded is not None:
            others.append(recorded_side(self.recorded, self.net))
        if runner is not None:
            others += self._other_sides(first.name, options)
        if isinstance(self.against, HeldChain):
            others.append(chain_side(self.against, self.net, self.inputs, self.remarks))
        self.progress(f"comparing {first.name} with {', '.join(other.name for other in others)}")
        comparisons = []
        for other in others:
            own = {}
            if other.name in self.halves and not compare["given"].given:
                own = {"given": half_tolerances(self.net, other.values), "isolate": True}
            comparisons.append(Comparison(self.net, runner, first, other, **{**compare, **own}))
        self.outputs += compare_layers(self.net, comparisons, lambda index: done(index, first.values))
        self.remarks += cut_short([first, *others], names or ())
        return True

    def _engine_sides(self, names: tuple[str, ...] | None, options: EngineOptions) -> Iterator[Side]:
        """What each engine computes; one that was not asked for by name may fail."""
        chosen = engine_table.available(options) if names is None else names
        if names is None and (why := no_engine(self.net, chosen)):
            self.remarks.append(why)
            return
        for name in chosen:
            self.progress(f"running {name}")
            try:
                side = engine_side(name, self.net, self.inputs, options.get(name, {}))
                self.remarks += side.notes
                yield side
            except BridgeError as error:
                if names is not None:
                    raise
                self.remarks.append(f"engine {name} was not used: {error.args[0]}")

    def _graph_sides(self) -> Iterator[Side]:
        """The graphs of the ONNX files among the models, as they stand."""
        from bridge.verification.graphs import run_graph

        models = (self.files, *([self.against] if self.against else []))
        for path in [model.weights for model in models if model.kind == "onnx"]:
            self.progress(f"running the graph of {path}")
            if path in self.refused:
                continue  # another draw would end as the first did, after as long a time
            try:
                run = run_graph(self.runtime, path, self.net, self.inputs, subset=self.subset)
            except ModelError as error:
                self.undone.append(f"the graph was not run: {error.args[0]}")
                continue
            except BridgeError as error:
                self.remarks.append(str(error.args[0]))
                continue
            self.refused |= {path} if run.refused else set()
            self.parts += [run.parts] if run.parts not in self.parts else []
            self.remarks += run.remarks
            if run.layer is not None and not run.half:
                self.layer_runs[run.side.name] = run.side, run.layer
            self.halves |= {run.side.name} if run.half else set()
            if run.side.values:
                yield run.side

    def _other_sides(self, engine: str, options: EngineOptions) -> Iterator[Side]:
        """The second model in the same engine, unless it is the same net with the same weights."""
        if self.against is None or self.other is None or self.against.kind == "onnx":
            return
        net = served(self.other.net, self.selected, {name: array.shape for name, array in self.inputs.items()})
        alike = [layer.definition for layer in net] == [layer.definition for layer in self.net]
        blobs = self.weights[-1].blobs
        if alike and blobs and all(blob.status == SAME for blob in blobs):
            return
        name = f"{engine} on {self.against.weights}"
        try:
            if lacking := [blob for blob in net.inputs if blob not in self.inputs]:
                raise ModelError(f"takes an input '{lacking[0]}', which the first model does not have", where=net.where)
            side = engine_side(engine, net, self.inputs, options.get(engine, {}))
        except BridgeError as error:
            self.outputs.append(OutputsResult(engine, name, why=str(error.args[0])))
            self.undone.append(f"outputs were not compared with {self.against.weights}: {error.args[0]}")
            return
        yield Side(name, values_by_name(self.net, net, side))
