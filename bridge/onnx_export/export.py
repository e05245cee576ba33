"""Export of a net to an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

import bridge
from bridge import prototxt
from bridge.errors import UsageError
from bridge.inference import inference_net
from bridge.onnx_export.builder import CUSTOM_DOMAIN
from bridge.onnx_export.dims import Extent
from bridge.onnx_export.graph import Graph, lower
from bridge.onnx_export.model import DEFAULT_OPSET, MIN_OPSET, blob_index, newest_opset, to_model
from bridge.schema import Net


def to_onnx_model(
    net: Net,
    *,
    opset: int = DEFAULT_OPSET,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    every_top: bool = False,
    allow_custom: bool = False,
) -> tuple[onnx.ModelProto, Graph]:
    """The net as an ONNX model in memory, and the graph that it was made from.

    Data layers, losses and what else serves training only are left out, see
    :func:`bridge.inference.inference_net`.

    Args and Raises: as :func:`bridge.onnx_export.graph.lower`.
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
    )
    graph.notes[:0] = notes
    metadata = {
        "bridge.version": bridge.__version__,
        "bridge.prototxt": prototxt.format(net.to_message()),
        "bridge.blobs": blob_index(graph, [layer.name for layer in net.layers]),
    }
    model = to_model(graph, name=net.name, metadata=metadata, producer_version=bridge.__version__)
    return model, graph


def export_onnx(
    net: Net,
    path: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    allow_custom: bool = False,
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
        check: Run the model in ONNX Runtime against the Chainer engine, where both are installed.
        seed: For the inputs of that run.

    Returns:
        The lowered graph, with remarks in its ``notes``.

    Raises:
        UnsupportedLayerError: Layers that ONNX cannot express; names all of them.
        ModelError: The net does not fit together.
        UsageError: An argument is wrong.
        DifferenceError: The engines differ; names the first layer. Nothing is written.
    """
    from bridge.writers import atomic

    net, notes = _for_inference(net, inputs)
    model, graph = to_onnx_model(
        net, opset=opset, inputs=inputs, dynamic_batch=dynamic_batch, allow_custom=allow_custom
    )
    graph.notes[:0] = notes
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    if check and CUSTOM_DOMAIN in graph.builder.domains:
        graph.notes.append(f"not run: no runtime here knows the nodes of {CUSTOM_DOMAIN}")
    elif check:
        from bridge.onnx_export.check import check_run

        graph.notes += check_run(data, net, graph, seed)
    with atomic(path) as file:
        file.write(data)
    return graph


def _for_inference(net: Net, inputs: Mapping[str, Sequence[Extent]] | None) -> tuple[Net, list[str]]:
    """The net without what serves training only, and the notes on what was done."""
    made = inference_net(net, inputs)
    return made, list(made.notes[len(net.notes) :])
