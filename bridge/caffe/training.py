"""A solver's run into a folder: ``bridge finetune --solver`` without ``--data``.

The net reads its own data layers, as in Caffe; what comes of it is in one folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bridge
from bridge.caffe.solver_param import SolverSettings
from bridge.caffe.solvers import Solver, get_solver
from bridge.caffe.state import STATE
from bridge.caffe_files import prototxt
from bridge.caffe_files.inference import inference_net
from bridge.errors import OutputError, UnsupportedLayerError, UsageError
from bridge.files.atomic import atomic
from bridge.files.sniff import sniff

_SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Training:
    """A finished run.

    Attributes:
        solver: The solver.
        folder: The run's folder.
        notes: Remarks for the user, one line each.
        tests: The last record of each test net.
    """

    solver: Solver
    folder: Path
    notes: tuple[str, ...]
    tests: tuple[dict[str, Any], ...]


def train(
    solver_file: str,
    files: Sequence[str],
    output: str,
    *,
    resume: bool = False,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Training:
    """Train a net from its own data layers, as ``caffe train`` does.

    Args:
        solver_file: The solver.prototxt. Paths in it, and in its net, are relative to the working directory or,
            where there is nothing, to its own folder.
        files: Weights to start from, a ``.solverstate`` of Caffe's or of ours to go on from, a prototxt in place of
            the solver's net; each once, in any order.
        output: The folder for ``model.caffemodel``, ``model.onnx``, ``deploy.prototxt``, ``log.jsonl`` and snapshots.
        resume: Go on from the last snapshot in the folder.
        on_record: Called with each record of :attr:`bridge.caffe.solvers.Solver.report`.

    Raises:
        BridgeError: Whatever keeps the run from starting, or ends it early, in one line.
    """
    folder = Path(output)
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("is not empty", where=output, hint="name another folder, or continue the run with --resume")
    with _paths_beside(Path(solver_file)):
        solver, every = _solver(solver_file, files, _last_snapshot(folder) if resume else None)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be made: {error.strerror}", where=output) from None
        solver.param.snapshot, solver.param.snapshot_prefix = every, str(folder / _SNAPSHOT)
        solver.param.snapshot_after_train = False
        tests = _run(solver, folder, resume, on_record)
        definition = solver.settings.definition()
    notes = _products(solver, definition, folder)
    return Training(solver, folder, tuple(notes), tuple(tests.values()))


@contextmanager
def _paths_beside(solver: Path) -> Iterator[None]:
    """Have paths be found beside the solver.prototxt too."""

    def resolve(text: str) -> Path:
        beside = solver.parent / text
        return beside if not os.path.lexists(text) and beside.exists() else Path(text)

    before, STATE.resolve = STATE.resolve, resolve
    try:
        yield
    finally:
        STATE.resolve = before


def _solver(solver_file: str, files: Sequence[str], snapshot: Path | None) -> tuple[Solver, int]:
    """The solver with its starting values, and the interval of its snapshots."""
    found = _sorted(files)
    settings = SolverSettings.read(solver_file)
    if "prototxt" in found:
        settings.use_net(found["prototxt"])
    if settings.param.solver_mode == settings.param.GPU and "solver_mode" in settings.message:
        settings.param.solver_mode = settings.param.CPU  # bridge finetune chooses its device by --device
    every, settings.param.snapshot = settings.param.snapshot, 0  # no file before nothing keeps the run from starting
    solver = get_solver(settings)
    if "weights" in found:
        solver.net.copy_from(found["weights"])
    if snapshot is not None or "solverstate" in found:
        solver.restore(snapshot or found["solverstate"])
    return solver, every


def _sorted(files: Sequence[str]) -> dict[str, str]:
    """The files by what they are: ``prototxt``, ``solverstate`` or ``weights``."""
    found: dict[str, str] = {}
    for file in files:
        kind = sniff(file).name
        if kind == "hdf5" and str(file).endswith(".solverstate.h5"):
            kind = "solverstate"
        kind = kind if kind in ("prototxt", "solverstate") else "weights"
        if kind in found:
            raise UsageError(f"{found[kind]} and {file} are both {kind}", expected="one of each")
        found[kind] = str(file)
    return found


def _last_snapshot(folder: Path) -> Path | None:
    """The solverstate of the most iterations in a run's folder."""
    pattern = re.compile(rf"{_SNAPSHOT}_iter_(\d+)\.solverstate(\.h5)?")
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := pattern.fullmatch(path.name))]
    return max(found, default=(0, None))[1]


def _run(
    solver: Solver, folder: Path, resume: bool, on_record: Callable[[dict[str, Any]], None]
) -> dict[int, dict[str, Any]]:
    """Train to the end; returns the last record of each test net."""
    tests: dict[int, dict[str, Any]] = {}
    with open(folder / "log.jsonl", "a" if resume else "w", encoding="utf-8") as log:

        def report(record: dict[str, Any]) -> None:
            if "test" in record:
                tests[record["test"]] = record
            log.write(json.dumps(record) + "\n")
            log.flush()
            on_record(record)

        solver.report = report
        solver.solve()
    return tests


def _products(solver: Solver, definition: Any, folder: Path) -> list[str]:
    """Write the model; returns remarks."""
    solver.net.save(folder / "model.caffemodel")
    with atomic(folder / "net.prototxt") as stream:
        stream.write(prototxt.format(definition).encode())
    net = bridge.load(folder / "net.prototxt", folder / "model.caffemodel")
    inputs = {name: shape for name, shape in _one_sample(solver).items() if name in inference_net(net).inputs}
    single = {name: [1, *shape[1:]] for name, shape in inputs.items()}
    with atomic(folder / "deploy.prototxt") as stream:
        stream.write(prototxt.format(inference_net(net, single).to_message()).encode())
    try:
        graph = bridge.export_onnx(net, folder / "model.onnx", inputs=inputs)
    except UnsupportedLayerError as error:
        return [f"there is no model.onnx: {error.args[0]}"]
    return [f"model.onnx: {note}" for note in graph.notes]


def _one_sample(solver: Solver) -> dict[str, list[int | str]]:
    """The extents of what data layers give, the number of samples open."""
    sources = [node for node in solver.net.nodes if hasattr(node, "source")]
    names = {name for node in sources for name in solver.net.top_names[node.name]}
    return {name: ["batch", *solver.net.blobs[name].shape[1:]] for name in names}
