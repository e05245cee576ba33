"""A folder of models at once: pairs of prototxt and weights are found, and each is converted and proven on its own.

Every model is converted in a process of its own, so that one that fails or needs too much memory stops no other.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bridge import __version__
from bridge.caffe_files import prototxt as text_format
from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.inference import inference_net
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import BridgeError, MissingFileError
from bridge.files import readers
from bridge.files.atomic import atomic
from bridge.layers import REGISTRY
from bridge.layers.base import registered_name
from bridge.schema import Layer, Net, RawNet
from bridge.schema.message import Message
from bridge.show import html

_WEIGHTS, _TEXT = (".caffemodel", ".caffemodel.h5"), (".prototxt", ".pt", ".pbtxt", ".txt")
_LEAST = 0.5
"""A prototxt goes with weights if it names at least this part of the layers that they are for."""
_TRIED = 50
"""So many prototxts, the nearest first, are tried with the weights."""
_LINES = 4
"""So many lines of what a conversion says are kept."""


@dataclass(frozen=True)
class ModelFiles:
    """A model in a folder.

    Attributes:
        weights: The file of weights, below the folder.
        definition: The prototxt that fits it best; empty for the net stored beside the weights.
        fit: Which part of the stored layers the prototxt names, 0 to 1.
        inputs: Shapes that the prototxt does not tell and the stored net does, as ``--input`` takes them.
    """

    weights: str
    definition: str = ""
    fit: float = 1.0
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Migration:
    """What became of a model.

    Attributes:
        pair: The model.
        stamp: This package's version, and sizes and times of the files, to see whether something changed.
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

    A prototxt fits if it names half of the layers that the weights are stored for, and if its layers all find blobs of
    their shapes. Of several, the nearest goes first, then one for deployment, then the one that names most of the
    layers, then the one whose name is most like that of the weights. One that lies in another branch of the tree has
    to agree with the net that is stored beside the weights, type by type and parameter by parameter. If none fits, the
    near one that names most of the layers is taken; without a near one, the net that is stored.

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
            progress(f"{outcome.pair.weights}: {_verdict(outcome)}{_reason(outcome)}")
            outcomes.append(outcome)
    with atomic(target / "index.html") as stream:
        stream.write(_page(root, outcomes).encode())
    return outcomes


def _paired(weights: Path, root: Path, texts: dict[Path, tuple[set[str], bool]]) -> ModelFiles:
    name = weights.relative_to(root).as_posix()
    try:
        raw = readers.read(weights)
    except BridgeError:
        return ModelFiles(name)
    stored = {layer.name for layer in raw.layers if layer.blobs}
    fits = {path: len(stored & names) / len(stored) for path, (names, _) in texts.items() if stored}
    ranked = sorted(
        (path for path, fit in fits.items() if fit >= _LEAST),
        key=lambda path: (_distance(path, weights), not texts[path][1], -fits[path], -_likeness(path, weights)),
    )
    best = next((path for path in ranked[:_TRIED] if _works(raw, path, weights)), None)
    if best is None:
        near = [path for path in ranked if not _distance(path, weights)]
        best = max(near, key=lambda path: (fits[path], texts[path][1], _likeness(path, weights)), default=None)
    if best is None:
        return ModelFiles(name)
    return ModelFiles(name, best.relative_to(root).as_posix(), round(fits[best], 3), _told(raw, best))


def _told(raw: RawNet, path: Path) -> tuple[str, ...]:
    """The shapes of inputs that the stored net tells and a prototxt does not, such as ``data=1,1,28,28``."""
    try:
        stored = inference_net(assemble(raw)).inputs
        wanted = inference_net(assemble(raw, text_format.parse_file(path))).inputs
    except BridgeError:
        return ()
    found = {blob: stored.get(blob) for blob, shape in wanted.items() if shape is None}
    return tuple(f"{blob}={','.join(map(str, shape))}" for blob, shape in found.items() if shape)


def _distance(path: Path, weights: Path) -> int:
    """How many folders lie between a prototxt and the weights; 0 if it is in their folder or in one above it."""
    common = Path(os.path.commonpath((path.parent, weights.parent)))
    return 0 if path.parent == common else len(weights.relative_to(common).parts)


def _works(raw: RawNet, path: Path, weights: Path) -> bool:
    """Whether a prototxt runs with the weights; one of another branch has to say what their own net says, too."""
    try:
        net = _runs(raw, text_format.parse_file(path))
    except BridgeError:
        return False
    return net is not None and (not _distance(path, weights) or _agrees(net, assemble(raw)))


def _runs(raw: RawNet, definition: Message) -> Net | None:
    """The net, if each layer finds its blobs among those that are stored, of the shapes that it needs."""
    try:
        net = inference_net(assemble(raw, definition))
        net.infer()
    except BridgeError:
        return None
    return None if any(layer.uncovered for layer in net) else net


def _agrees(net: Net, stored: Net) -> bool:
    """Whether layers of one name have one type and the same parameters, but for inputs and the use of statistics."""
    own = {layer.name: layer for layer in stored}
    return all(_same(layer, own[layer.name]) for layer in net if layer.name in own and not layer.is_input)


def _same(layer: Layer, other: Layer) -> bool:
    trained = not layer.statistics.isdisjoint(layer.roles(0))  # a net for training takes its batch's
    return type(layer) is type(other) and (trained or layer.attributes() == other.attributes())


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
    shapes = [f"--input={text}" for text in pair.inputs]
    status, said = _command("export", *files, *shapes, "-o", str(model))
    passed = _command("verify", *files, *shapes) if status == 0 else (2, ())
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
    return " ".join([__version__, *(f"{state.st_size}:{state.st_mtime_ns}" for state in found)])


def _recorded(path: Path) -> Migration | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        pair = data.pop("pair")
        known = ModelFiles(**{**pair, "inputs": tuple(pair["inputs"])})
        return Migration(known, **{**data, "said": tuple(data["said"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _verdict(outcome: Migration) -> str:
    if outcome.proven:
        return "converted and proven"
    return "converted, not proven" if outcome.converted else "not converted"


def _reason(outcome: Migration) -> str:
    """Why a model is not converted or not proven, in brackets: the line of the error, and not the hint below it."""
    if outcome.proven or not outcome.said:
        return ""
    errors = [line for line in outcome.said if line.startswith("bridge: ")]
    return f" ({(errors or outcome.said)[-1].removeprefix('bridge: ')})"


def _page(root: Path, outcomes: Sequence[Migration]) -> str:
    proven, converted = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("proven", "converted"))
    verdict = "passed" if proven == len(outcomes) else "failed"
    head = html.tag(
        "header",
        html.tag("p", f"The models below {root.name}", class_="soft"),
        html.tag("h1", f"{proven} of {len(outcomes)} converted and proven"),
        html.tag("p", f"{converted - proven} converted, not proven; {len(outcomes) - converted} not converted"),
        class_=verdict,
    )
    return html.page(f"Models of {root.name}", head, html.table(_COLUMNS, map(_row, outcomes)))


_COLUMNS = ("model", "result", "remarks")


def _row(outcome: Migration) -> Iterator[html.Content]:
    """The cells of a model: its files, what became of it, and each remark in a paragraph of its own."""
    pair, state = outcome.pair, "same" if outcome.proven else "note" if outcome.converted else "different"
    yield html.join(html.tag("p", pair.weights), html.tag("i", pair.definition or "no prototxt"))
    yield html.tag("b", _verdict(outcome), class_=state)
    yield (html.tag("p", line.removeprefix("bridge: ")) for line in outcome.said)
