"""A folder of models at once: pairs of prototxt and weights are found, and each is converted and proven on its own.

Every model is converted in a process of its own, so that one that fails or needs too much memory stops no other.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bridge.caffe_files import prototxt as text_format
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import BridgeError, MissingFileError
from bridge.files import readers
from bridge.files.atomic import atomic
from bridge.layers import REGISTRY
from bridge.layers.base import registered_name
from bridge.schema import RawNet
from bridge.show import html

_WEIGHTS, _TEXT = (".caffemodel", ".caffemodel.h5"), (".prototxt", ".pt", ".pbtxt", ".txt")
_LEAST = 0.5
"""A prototxt goes with weights if it names at least this part of the layers that they are for."""
_LINES = 4
"""So many lines of what a conversion says are kept."""


@dataclass(frozen=True)
class ModelFiles:
    """A model in a folder.

    Attributes:
        weights: The file of weights, below the folder.
        definition: The prototxt that fits it best; empty for the net stored beside the weights.
        fit: Which part of the stored layers the prototxt names, 0 to 1.
    """

    weights: str
    definition: str = ""
    fit: float = 1.0


@dataclass(frozen=True)
class Migration:
    """What became of a model.

    Attributes:
        pair: The model.
        stamp: Sizes and times of its files, to see whether they changed.
        converted: Whether the ONNX file was written, after it was run and compared.
        proven: Whether ``bridge verify`` passed.
        said: What the commands said: remarks, or the reason.
    """

    pair: ModelFiles
    stamp: str
    converted: bool
    proven: bool
    said: tuple[str, ...]


def find_pairs(folder: str | Path) -> list[ModelFiles]:
    """The models below a folder, each with the prototxt that fits its weights best.

    A prototxt is looked for in the folder of the weights and in those above it, up to the one that is given. It fits
    if it names the layers that the weights are stored for; of several, one for deployment goes first, then the one
    whose name is most like that of the weights.

    Args:
        folder: The folder.

    Raises:
        MissingFileError: It is no folder, or no weights are below it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFileError("is not a folder", where=str(root))
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    texts = {path: names for path in files if path.name.endswith(_TEXT) and (names := _layer_names(path)) is not None}
    weights = [path for path in files if path.name.endswith(_WEIGHTS)]
    if not weights:
        wanted = f"files that end in {' or '.join(sorted([_WEIGHTS] if isinstance(_WEIGHTS, str) else _WEIGHTS))}"
        raise MissingFileError("no weights are below it", expected=wanted, where=str(root))
    return [_paired(path, root, texts) for path in weights]


def migrate_folder(
    folder: str | Path, out: str | Path, *, jobs: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> list[Migration]:
    """Convert and prove every model below a folder, and write an index of what became of them.

    A model whose files have not changed since the last time is not converted again.

    Args:
        folder: The folder of models.
        out: The folder for the ONNX files, in the same order of folders, and for ``index.html``; it is made.
        jobs: How many models to convert at a time; half of the processors by default.
        progress: Is given a line for each model that is done.

    Returns:
        What became of each model, in the order of their names.

    Raises:
        MissingFileError: ``folder`` is no folder, or no weights are below it.
        OutputError: ``out`` cannot be written.
    """
    root, target = Path(folder), Path(out)
    pairs = find_pairs(root)
    target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs or max(1, (os.cpu_count() or 2) // 2)) as pool:
        outcomes = []
        for outcome in pool.map(lambda pair: _migrated(pair, root, target), pairs):
            why = f" ({outcome.said[-1]})" if outcome.said and not outcome.proven else ""
            progress(f"{outcome.pair.weights}: {_verdict(outcome)}{why}")
            outcomes.append(outcome)
    with atomic(target / "index.html") as stream:
        stream.write(_page(root, outcomes).encode())
    return outcomes


def _paired(weights: Path, root: Path, texts: dict[Path, tuple[set[str], bool]]) -> ModelFiles:
    name = weights.relative_to(root).as_posix()
    try:
        stored = {layer.name for layer in _stored(weights).layers if layer.blobs}
    except BridgeError:
        return ModelFiles(name)
    near = {parent for parent in weights.parents if parent == root or root in parent.parents}
    ranked = [
        (len(stored & names) / len(stored), deployed, _likeness(path, weights), path)
        for path, (names, deployed) in texts.items()
        if stored and path.parent in near
    ]
    fit, _, _, best = max(ranked, default=(0.0, False, 0, weights), key=lambda entry: entry[:3])
    definition = best.relative_to(root).as_posix() if fit >= _LEAST else ""
    return ModelFiles(name, definition, round(fit, 3))


def _stored(path: Path) -> RawNet:
    return readers.read(path)


def _layer_names(path: Path) -> tuple[set[str], bool] | None:
    """The names of a prototxt's layers, and whether it is for deployment; nothing for a file that is no net."""
    try:
        if readers.kind_of(path).name != "prototxt":
            return None
        _, layers = upgrade_net(text_format.parse_file(path))
    except BridgeError:
        return None
    if not layers:
        return None
    types = (REGISTRY.get(registered_name(layer)) for layer in layers)
    return {layer.text("name") for layer in layers}, not any(cls is not None and cls.training_only for cls in types)


def _likeness(a: Path, b: Path) -> float:
    """How much two names have in common, 0 to 1; more for files of one folder."""
    return difflib.SequenceMatcher(None, a.stem.lower(), b.stem.lower()).ratio() + (a.parent == b.parent)


def _migrated(pair: ModelFiles, root: Path, target: Path) -> Migration:
    """What becomes of one model; from its record, if it was proven before or could not be converted."""
    model = target / f"{pair.weights.replace('.caffemodel', '')}.onnx"
    record, stamp = model.with_suffix(".json"), _stamp(pair, root)
    known = _recorded(record)
    if known is not None and known.pair == pair and known.stamp == stamp and _settled(known, model):
        return known
    model.parent.mkdir(parents=True, exist_ok=True)
    files = [str(root / name) for name in (pair.definition, pair.weights) if name]
    status, said = _command("export", *files, "-o", str(model))
    passed = _command("verify", *files) if status == 0 else (2, ())
    outcome = Migration(pair, stamp, status == 0, passed[0] == 0, (*said, *(passed[1] if passed[0] else ())))
    with atomic(record) as stream:
        stream.write(json.dumps(asdict(outcome), indent=2).encode())
    return outcome


def _settled(known: Migration, model: Path) -> bool:
    """Whether a record need not be made again; another engine may prove what was not proven."""
    return model.exists() and known.proven if known.converted else True


def _command(*arguments: str) -> tuple[int, tuple[str, ...]]:
    """The status of a ``bridge`` command in a process of its own, and the last lines of what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    spoken = done.stderr if arguments[0] == "export" or done.returncode == 2 else done.stdout
    lines = [line for line in spoken.splitlines() if line.strip()]
    return done.returncode, tuple(line.strip() for line in lines[-_LINES:])


def _stamp(pair: ModelFiles, root: Path) -> str:
    found = ((root / name).stat() for name in (pair.weights, pair.definition) if name)
    return " ".join(f"{state.st_size}:{state.st_mtime_ns}" for state in found)


def _recorded(path: Path) -> Migration | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Migration(ModelFiles(**data.pop("pair")), **{**data, "said": tuple(data["said"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _verdict(outcome: Migration) -> str:
    if outcome.proven:
        return "converted and proven"
    return "converted, not proven" if outcome.converted else "not converted"


def _page(root: Path, outcomes: Sequence[Migration]) -> str:
    proven, converted = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("proven", "converted"))
    summary = f"{len(outcomes)} models: {converted} converted, {proven} of them proven"
    return html.page(f"Models of {root.name}", html.tag("p", summary), html.table(_COLUMNS, _rows(outcomes)))


_COLUMNS = ("model", "prototxt", "result", "remarks")


def _rows(outcomes: Iterable[Migration]) -> Iterable[tuple[str, ...]]:
    for outcome in outcomes:
        yield outcome.pair.weights, outcome.pair.definition or "-", _verdict(outcome), " · ".join(outcome.said)
