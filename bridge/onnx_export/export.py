"""Export of a net to an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

import bridge
from bridge import prototxt
from bridge.errors import ModelError, UsageError
from bridge.inference import inference_net
from bridge.onnx_export.builder import CUSTOM_DOMAIN
from bridge.onnx_export.dims import Extent
from bridge.onnx_export.file import OnnxFile
from bridge.onnx_export.graph import Graph, lower
from bridge.onnx_export.half import to_half
from bridge.onnx_export.model import DEFAULT_OPSET, MIN_OPSET, blob_index, newest_opset, to_file
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Net


def to_onnx_model(net: Net, **options: Any) -> tuple[onnx.ModelProto, Graph]:
    """The net as an ONNX model in memory, and the graph that it was made from.

    Args and Raises: as :func:`to_onnx_file`.
    """
    file, graph = to_onnx_file(net, **options)
    return onnx.load_model_from_string(file.tobytes()), graph


def to_onnx_file(
    net: Net,
    *,
    opset: int = DEFAULT_OPSET,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    every_top: bool = False,
    allow_custom: bool = False,
    preprocess: Preprocess | None = None,
    half: bool = False,
    digests: Mapping[str, str] | None = None,
) -> tuple[OnnxFile, Graph]:
    """The net as an ONNX file, its weights still where they were; and the graph that it was made from.

    Data layers, losses and what else serves training only are left out, see
    :func:`bridge.inference.inference_net`.

    Args:
        net: The net.
        opset: Version of the default operator set, 13 to the newest that ``onnx`` knows.
        inputs, dynamic_batch, every_top, allow_custom, preprocess: As :func:`bridge.onnx_export.graph.lower`.
        half: Compute in float16 between float32 inputs and outputs.
        digests: SHA-256 of the source files by name, for the metadata.

    Raises:
        UnsupportedLayerError: Layers that ONNX cannot express; names all of them.
        ModelError: The net does not fit together.
        UsageError: An argument is wrong.
    """
    net, notes = _for_inference(net, inputs)
    if not MIN_OPSET <= opset <= newest_opset():
        raise UsageError(f"opset {opset} is outside {MIN_OPSET} to {newest_opset()}")
    graph = lower(
        net,
        opset=opset,
        inputs=inputs,
        dynamic_batch=dynamic_batch,
        every_top=every_top,
        allow_custom=allow_custom,
        preprocess=preprocess,
    )
    graph.notes[:0] = notes
    if half:
        to_half(graph)
    metadata = {
        "bridge.version": bridge.__version__,
        "bridge.prototxt": prototxt.format(net.to_message()),
        "bridge.blobs": blob_index(graph, [layer.name for layer in net.layers]),
        **{f"bridge.sha256.{name}": digest for name, digest in (digests or {}).items()},
    }
    return to_file(graph, name=net.name, metadata=metadata, producer_version=bridge.__version__), graph


def export_onnx(
    net: Net,
    path: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    allow_custom: bool = False,
    preprocess: Preprocess | None = None,
    half: bool = False,
    external_data: str | None = None,
    check: bool = True,
    seed: int = 0,
) -> Graph:
    """Write the net as an ONNX file, after it was run and compared with a second engine.

    Args:
        net: The net.
        path: The file to write; it appears whole or not at all.
        opset: Version of the default operator set, 13 to the newest that ``onnx`` knows.
        inputs: Extents of input blobs, where they are not to be the file's; a name in
            place of a number leaves that extent open.
        dynamic_batch: Leave the first extent of every input open where the net allows it.
        allow_custom: Let what standard ONNX cannot say become nodes of the domain ``org.weightbridge``.
        preprocess: Mean, scale and channel order to bake in as nodes.
        half: Compute in float16 between float32 inputs and outputs.
        external_data: ``file`` puts the weights into ``PATH.data``; ``source`` leaves them where
            they lie in the file that was read, which has to be in the model's folder or below.
        check: Run the model in ONNX Runtime against the Chainer engine, where both are installed.
        seed: For the inputs of that run.

    Returns:
        The lowered graph, with remarks in its ``notes``.

    Raises:
        UnsupportedLayerError: Layers that ONNX cannot express; names all of them.
        ModelError: The net does not fit together, or has no outputs.
        UsageError: An argument is wrong.
        DifferenceError: The engines differ; names the first layer. Nothing is written.
    """
    if external_data not in (None, "file", "source"):
        raise UsageError(f"external data '{external_data}', expected file or source")
    net, notes = _for_inference(net, inputs)
    digests = {} if external_data == "source" else _digests(net)
    file, graph = to_onnx_file(
        net,
        opset=opset,
        inputs=inputs,
        dynamic_batch=dynamic_batch,
        allow_custom=allow_custom,
        preprocess=preprocess,
        half=half,
        digests=digests,
    )
    if not graph.outputs:
        raise ModelError("the net has no outputs: another layer, or Silence, reads each of its blobs", where=net.where)
    graph.notes[:0] = notes
    file.check()
    if check and CUSTOM_DOMAIN in graph.builder.domains:
        graph.notes.append(f"not run: no runtime here knows the nodes of {CUSTOM_DOMAIN}")
    elif check:
        from bridge.onnx_export.check import check_run

        graph.notes += check_run(file.tobytes(), net, graph, seed, preprocess)
    _write(file, Path(path), external_data)
    return graph


def _write(file: OnnxFile, path: Path, external_data: str | None) -> None:
    from bridge.writers import atomic

    if external_data == "source":
        file.refer_to_source(path)
    elif external_data == "file":
        with atomic(path.with_name(f"{path.name}.data")) as stream:
            for piece in file.store_beside(path):
                stream.write(piece)
    with atomic(path) as stream:
        for piece in file.pieces():
            stream.write(piece)


def _digests(net: Net) -> dict[str, str]:
    """SHA-256 of each source file by its name."""
    import hashlib

    digests = {}
    for source in net.sources:
        made = hashlib.sha256()
        try:
            with open(source, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    made.update(chunk)
        except OSError:  # it was read already; a digest is all that is lost
            continue
        digests[Path(source).name] = made.hexdigest()
    return digests


def _for_inference(net: Net, inputs: Mapping[str, Sequence[Extent]] | None) -> tuple[Net, list[str]]:
    """The net without what serves training only, and the notes on what was done."""
    made = inference_net(net, inputs)
    return made, list(made.notes[len(net.notes) :])
