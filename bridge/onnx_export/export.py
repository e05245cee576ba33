"""From a net to an ONNX model, in memory or ready to be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import onnx

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.inference import inference_net
from bridge.errors import UsageError
from bridge.onnx_export.dims import Extent
from bridge.onnx_export.file import OnnxFile
from bridge.onnx_export.graph import Graph, lower
from bridge.onnx_export.half import HALF_KEY, to_half
from bridge.onnx_export.model import DEFAULT_OPSET, MIN_OPSET, blob_index, newest_opset, to_file
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Net

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """How a net becomes ONNX: the arguments of :func:`to_onnx_file`."""

    opset: int | None
    inputs: Mapping[str, Sequence[Extent]] | None
    dynamic_batch: bool
    dynamic_sides: bool
    every_top: bool
    allow_custom: bool
    preprocess: Preprocess | None
    half: bool


def to_onnx(
    net: Net,
    *,
    opset: int | None = None,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    dynamic_sides: bool = True,
    allow_custom: bool = False,
    preprocess: Preprocess | None = None,
    half: bool = False,
) -> onnx.ModelProto:
    """The net as an ONNX model in memory, not yet compared with another engine.

    :func:`bridge.export_onnx` writes a file, and runs and compares the model first. A model in memory is limited
    to 2 GiB.

    Args:
        net: The net.
        opset: Version of the default operator set, 13 to the newest that ``onnx`` knows; 17 by default.
        inputs: Extents of input blobs, such as ``{"data": [1, 3, 224, 224]}``; a name instead of a number leaves
            that extent open.
        dynamic_batch: Leave the first extent of every input open where the net allows it.
        dynamic_sides: Leave height and width of images open where the net allows it; needs ``dynamic_batch``.
        allow_custom: Write what standard ONNX cannot express as nodes of the domain ``org.weightbridge``.
        preprocess: Mean, scale and channel order, added as the model's first nodes.
        half: Compute in float16 between float32 inputs and outputs.

    Raises:
        UnsupportedLayerError: ONNX cannot express some layers; names all of them.
        ModelError: The net does not fit together.
        UsageError: An argument is wrong.

    Source: onnx.proto, ``ModelProto``.
    """
    model, _ = to_onnx_model(
        net,
        opset=opset,
        inputs=inputs,
        dynamic_batch=dynamic_batch,
        dynamic_sides=dynamic_sides,
        allow_custom=allow_custom,
        preprocess=preprocess,
        half=half,
    )
    return model


def to_onnx_model(net: Net, **options: Unpack[Options]) -> tuple[onnx.ModelProto, Graph]:
    """The net as an ONNX model in memory, and the graph that it was made from.

    Args:
        net: The net.
        options: As of :func:`to_onnx_file`, which also says what is raised.
    """
    file, graph = to_onnx_file(net, **options)
    return onnx.load_model_from_string(file.tobytes()), graph


def to_onnx_file(
    net: Net,
    *,
    opset: int | None = None,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    dynamic_sides: bool = True,
    every_top: bool = False,
    allow_custom: bool = False,
    preprocess: Preprocess | None = None,
    half: bool = False,
) -> tuple[OnnxFile, Graph]:
    """The net as an ONNX file, its weights not yet read; and the graph that it was made from.

    Data layers, losses and other layers for training are left out, see
    :func:`bridge.caffe_files.inference.inference_net`.

    Args:
        net: The net.
        opset: Version of the default operator set, 13 to the newest that ``onnx`` knows; 17 by default.
        inputs: Extents of input blobs; a name instead of a number leaves that extent open.
        dynamic_batch: Leave the first extent of every input open where the net allows it.
        dynamic_sides: Leave height and width of images open where the net allows it; needs ``dynamic_batch``.
        every_top: Make every value that a layer writes an output, as well as the net's own.
        allow_custom: Write what standard ONNX cannot express as nodes of the domain ``org.weightbridge``.
        preprocess: Mean, scale and channel order, added as the first nodes.
        half: Compute in float16 between float32 inputs and outputs.

    Raises:
        UnsupportedLayerError: Layers that ONNX cannot express; names all of them.
        ModelError: The net does not fit together.
        UsageError: An argument is wrong.
    """
    notes = len(net.notes)
    net = inference_net(net, inputs)
    opset = DEFAULT_OPSET if opset is None else opset
    if not MIN_OPSET <= opset <= newest_opset():
        raise UsageError(f"opset {opset} is outside {MIN_OPSET} to {newest_opset()}")
    graph = lower(
        net,
        opset=opset,
        inputs=inputs,
        dynamic_batch=dynamic_batch,
        dynamic_sides=dynamic_sides,
        every_top=every_top,
        allow_custom=allow_custom,
        preprocess=preprocess,
    )
    graph.notes[:0] = net.notes[notes:]
    if half:
        to_half(graph, to_file(graph, name=net.name, metadata={}).element_types())
    metadata = {
        "bridge.version": bridge.__version__,
        "bridge.prototxt": prototxt.format(net.to_message()),
        "bridge.blobs": blob_index(graph, [layer.name for layer in net.layers]),
        **({HALF_KEY: "true"} if half else {}),
        **(preprocess.metadata(next(iter(graph.prepared))) if preprocess else {}),
    }
    return to_file(graph, name=net.name, metadata=metadata), graph
