"""Exporting: a net to an ONNX file, which is checked before it is written."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from bridge.caffe_files.fields import refuse_unknown_fields
from bridge.caffe_files.inference import inference_net, select_outputs
from bridge.caffe_files.structure import check_tops
from bridge.errors import ModelError, UsageError
from bridge.exporting.targets import check_operators, find_target, net_for
from bridge.files.atomic import atomic, check_sources, file_of, refuse_sources
from bridge.limits.sources import OPENED, check_unchanged, open_file, stamp_of
from bridge.schema import Net, Opaque
from bridge.schema.net import distinct

if TYPE_CHECKING:
    from bridge.onnx_export.dims import Extent
    from bridge.onnx_export.file import OnnxFile
    from bridge.onnx_export.graph import Graph
    from bridge.onnx_export.preprocess import Preprocess


def export_onnx(
    net: Net,
    path: str | Path,
    *,
    opset: int | None = None,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    outputs: Sequence[str] = (),
    dynamic_batch: bool = True,
    dynamic_sides: bool = True,
    target: str = "",
    allow_custom: bool = False,
    preprocess: Preprocess | None = None,
    half: bool = False,
    external_data: str | None = None,
    check: bool = True,
    recorded: str | Path | None = None,
    seed: int = 0,
    digest: bool | None = None,
) -> Graph:
    """Write the net as an ONNX file, after the model was run and compared with a second engine.

    Args:
        net: The net.
        path: The file to write; it appears whole or not at all.
        opset: Version of the default operator set, 13 to the newest that ``onnx`` knows; 17 by default.
        inputs: Extents of input blobs, such as ``{"data": [1, 3, 224, 224]}``, where they differ from the
            file's; a name instead of a number leaves that extent open.
        outputs: Blobs to put out; what none of them needs is left out. By default all that no layer reads.
        dynamic_batch: Leave the first extent of every input open where the net allows it.
        dynamic_sides: Leave height and width of images open where the net allows it; needs ``dynamic_batch``.
        target: The runtime that the model is for, such as ``opencv4``; by default what most runtimes take.
        allow_custom: Write what standard ONNX cannot express as nodes of the domain ``org.weightbridge``.
        preprocess: Mean, scale and channel order, added as the model's first nodes.
        half: Compute in float16 between float32 inputs and outputs.
        external_data: ``file`` puts the weights into ``PATH.data``; ``source`` leaves them where
            they lie in the file that was read, which has to be in the model's folder or below.
        check: Run the model in ONNX Runtime and compare it: with the Chainer engine, where it is installed.
        recorded: ``.npz`` file of recorded inputs and outputs to compare with instead.
        seed: Seed of the random inputs of that run.
        digest: Store the SHA-256 of the source files in the metadata. Computing it takes longer than writing the
            model, but not longer than the check, which runs at the same time. By default it follows ``check``.

    Returns:
        The lowered graph, with remarks in its ``notes``.

    Raises:
        UnknownFieldError: A layer has a field that nothing reads and that may change what it computes.
        UnsupportedLayerError: Layers that ONNX cannot express; names all of them.
        ModelError: The net does not fit together, or has no outputs.
        NotFoundError: ``outputs`` names a blob that no layer writes.
        UsageError: An argument is wrong.
        DifferenceError: The model computes something else; names the first layer. Nothing is written.
        OutputError: The file cannot be written.
    """
    check_tops(net)
    before = len(net.notes)
    if outputs:
        net = select_outputs(net, outputs, inputs)
    refuse_unknown_fields(net)
    runtime = find_target(target)
    net = net_for(runtime, net, inputs)
    file_path = _target(
        path, external_data, [*net.sources, *([recorded] if recorded is not None else []), *_parts(net)]
    )
    digests = _Digests(net.sources if (check if digest is None else digest) else ())  # runs in the background
    from bridge.onnx_export import to_onnx_file

    make = functools.partial(
        to_onnx_file,
        net,
        opset=opset,
        inputs=inputs,
        dynamic_batch=dynamic_batch and not runtime.static,
        dynamic_sides=dynamic_sides,
        allow_custom=allow_custom,
        preprocess=preprocess,
    )
    file, graph = make(half=half)
    if not graph.outputs:
        raise _nothing(net, inputs)
    check_operators(runtime, inference_net(net, inputs), graph)
    graph.notes[:0] = net.notes[before:]
    file.infer_shapes()
    file.check()
    if check:
        models = [(file, graph), *([make(half=False)] if half else [])]
        graph.notes += _checked(models, net, inputs, seed, recorded, preprocess)
    file.late = digests.metadata
    graph.notes += _write(file, file_path, external_data, net)
    return graph


def _target(path: str | Path, external_data: str | None, sources: Iterable[str | Path]) -> Path:
    """The file to write: what a link leads to, because external data are beside the file itself."""
    if external_data not in (None, "file", "source"):
        raise UsageError(f"external data '{external_data}'", expected="file or source")
    # what /dev/stdout leads to has no name, and is refused where it is opened
    target = Path(os.path.realpath(path) if os.path.islink(path) and not _nameless(path) else path)
    refuse_sources(sources, [target, *([_beside(target)] if external_data == "file" else [])])
    return target


def _nameless(path: str | Path) -> bool:
    """Whether a link leads to something that is there and is no file or folder of a name, such as a pipe."""
    return os.path.exists(path) and not os.path.exists(os.path.realpath(path))


def _checked(
    models: Iterable[tuple[OnnxFile, Graph]],
    net: Net,
    inputs: Mapping[str, Sequence[Extent]] | None,
    seed: int,
    recorded: str | Path | None,
    preprocess: Preprocess | None,
) -> list[str]:
    """Run each model, of which the first is written, and compare it with another engine; returns remarks."""
    from bridge.verification.exported import check_export

    run = functools.partial(
        check_export, net=inference_net(net, inputs), seed=seed, recorded=recorded, preprocess=preprocess
    )
    notes: dict[str, None] = {}
    own: list[str] | None = None
    for file, graph in models:
        notes.update(dict.fromkeys(run(file, graph)))
        own = _not_finite(graph) if own is None else own
    return [*notes, *(own or ())]


def _not_finite(graph: Graph) -> list[str]:
    """A note for each blob that holds NaN or infinity."""
    blobs = {name: init for name, init in graph.builder.initializers.items() if init.roles}
    wrong = [name for name, init in blobs.items() if not all(np.isfinite(part).all() for part in init.written())]
    return [f"'{name}' has values that are not finite numbers" for name in wrong]


def _nothing(net: Net, inputs: Mapping[str, Sequence[Extent]] | None) -> ModelError:
    """The error about a net without outputs."""
    from bridge.onnx_export.graph import before_hint

    unknown = [index for index, layer in enumerate(net.layers) if isinstance(layer, Opaque)]
    hint = before_hint(net, unknown) if unknown else ""
    return ModelError(f"there is nothing to export: {_lacking(net, inputs)}", where=net.where, hint=hint)


def _lacking(net: Net, inputs: Mapping[str, Sequence[Extent]] | None) -> str:
    """Why a net has no outputs."""
    if not net.layers:
        return f"the net has no layers for phase {net.phase}"
    sinks = [layer for layer in net.layers if isinstance(layer, Opaque) and layer.bottoms and not layer.tops]
    if sinks:
        last = sinks[-1]
        return f"{last.label} reads {', '.join(last.bottoms)}, and nothing is known of this type ({last.problem})"
    if not inference_net(net, inputs).layers:
        return "each of the net's layers serves training only"
    return "the net has no outputs, as another layer, or Silence, reads each of its blobs"


def _beside(path: Path) -> Path:
    """The file of external data."""
    return path.with_name(f"{path.name}.data")


def _write(file: OnnxFile, path: Path, external_data: str | None, net: Net) -> list[str]:
    """Write the model, and its data where they have a file of their own; returns remarks."""
    remarks = _refer_to_source(file, path, net.where) if external_data == "source" else []
    if external_data == "file":
        _write_pair(file, path, net)
    else:
        with atomic(path, durable=False) as model:
            _store(file.pieces(), model)
            check_sources(net, by_name=external_data == "source")
    return remarks


def _write_pair(file: OnnxFile, path: Path, net: Net) -> None:
    """Write a model and its data so that the model at ``path`` has its own data beside it at every moment.

    Two files cannot be replaced at once. Where there is a model already, the new data first get a name that nothing
    else has, and the new model, which refers to it, takes the old one's place. Then the data also get their usual
    name, which nothing refers to any more, and the model is written again to refer to that.
    """
    beside = _beside(path)
    taken, before = path.exists() or beside.exists(), file_of(path)
    staged = beside.with_name(f"{path.name}.{secrets.token_hex(6)}.data") if taken else beside
    with atomic(staged, durable=False) as data:
        _store(file.store_beside(staged), data)
        check_sources(net)
    try:
        with atomic(path, durable=False) as model:
            _store(file.pieces(), model)
    except BaseException:
        if file_of(path) == before:  # an interrupt may come when the new model is there already, and needs its data
            staged.unlink(missing_ok=True)
        raise
    if staged != beside and _renamed(staged, beside):
        file.external = {name: (beside.name, offset) for name, (_, offset) in file.external.items()}
        with atomic(path, durable=False) as model:
            _store(file.pieces(), model)
        staged.unlink(missing_ok=True)


def _renamed(staged: Path, beside: Path) -> bool:
    """Give a file a second name, in place of whatever has it; false where the file system has no second names."""
    between = staged.with_suffix(".link")
    try:
        os.link(staged, between)
    except OSError:
        return False
    os.replace(between, beside)
    return True


def _parts(net: Net) -> list[str]:
    """The files in which the net's values lie."""
    return sorted({blob.location.path for blob in distinct(net.layers) if blob.location is not None})


def _refer_to_source(file: OnnxFile, path: Path, where: str) -> list[str]:
    left = file.refer_to_source(path)
    if left and not file.external:
        raise UsageError(
            "holds no weights that a model could refer to: they are of another type, or not as the model needs them",
            where=where,
            hint="--external-data writes them into a file beside the model",
        )
    remark = f"{len(left)} of {len(file.tensors)} weights are in the model: the source has them in another form"
    return [remark] if left else []


def _store(pieces: Iterable[bytes | memoryview], stream: IO[bytes]) -> None:
    for piece in pieces:
        stream.write(piece)
    stream.flush()


class _Digests(threading.Thread):
    """Computes the SHA-256 of files in the background."""

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._sources, self._found = sources, dict[str, str]()
        self._read = {source: OPENED.last[str(source)] for source in sources if str(source) in OPENED.last}
        self.start()

    def run(self) -> None:
        for source in self._sources:
            made = hashlib.sha256()
            with contextlib.suppress(OSError):  # the file was read already; only the digest is lost
                with open_file(source) as stream:
                    self._read.setdefault(source, stamp_of(stream))
                    while chunk := stream.read(1 << 20):
                        made.update(chunk)
                self._found[f"bridge.sha256.{_utf8(Path(source).name)}"] = made.hexdigest()

    def metadata(self) -> dict[str, str]:
        """The digests, when all are there.

        Raises:
            ChangedError: A file is not the one that the net was read from.
        """
        self.join()
        for source, stamp in self._read.items():
            if os.path.exists(source):  # of one that is gone, a digest is all that is lost
                check_unchanged(source, stamp, same=True)
        return self._found


def _utf8(name: str) -> str:
    """The name of a file as text that any reader of ONNX takes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
