"""Layers that the file of weights has no blobs for, and whose fillers give the values, as in Caffe."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import cast

from bridge.errors import BridgeError
from bridge.layers import CaffeLayer
from bridge.layers.fillers import filled
from bridge.schema import Blob, Blobs, Layer, Net, RawLayer, Shape

_DETERMINED = {"constant", "bilinear"}
"""The fillers that give the same values every time."""


def fill_unstored(net: Net, stored: Sequence[RawLayer]) -> Net:
    """The net with the values of constant fillers in layers for which the file has no blobs.

    Caffe fills every blob when it builds a net, then copies what the file has; a layer that the file does not have
    keeps its filler's values. Only a layer whose prototxt names a constant or bilinear filler for its first blob is
    filled here: a weight that is random, or 0 because no filler is named, is no trained weight.

    Args:
        net: The net.
        stored: What the file has.

    Returns:
        The net, with a note for each layer that was filled. A layer stays without blobs where the shapes of the net's
        inputs are not known.

    Source: ``Layer::SetUp``, ``Net::CopyTrainedLayersFrom``; caffe.proto ``FillerParameter``.
    """
    unread = {layer.name for layer in stored if layer.uncovered}
    wanted = [index for index, layer in enumerate(net.layers) if layer.name not in unread and _named(layer)]
    if not wanted:
        return net
    layers, notes = list(net.layers), list(net.notes)
    with contextlib.suppress(BridgeError):  # whoever runs the net is told why it has no shapes, or no such values
        tops = net.infer()
        for index in wanted:
            shapes = [tops[value.layer][value.top] for value in net.flow.reads[index]]
            layers[index], values = _filled(cast(CaffeLayer, net.layers[index]), shapes)
            text = "the file has no blobs for it; its fillers give their values, as in Caffe"
            notes.append(f"{net.layers[index].label}: {text}: {values}")
    return net.replace(layers=tuple(layers), notes=tuple(notes))


def _named(layer: Layer) -> bool:
    """Whether the layer lacks its blobs, and its definition says which values they have."""
    if not isinstance(layer, CaffeLayer) or layer.blobs or not layer.uncovered:
        return False
    fields = [layer.filler(role)[0] for role in layer.roles(0)]
    kinds = [layer.parameters().message.message(field).text("type", "constant") for field in fields]
    return bool(fields) and fields[0] in layer.parameters() and set(kinds) <= _DETERMINED


def _filled(layer: CaffeLayer, bottoms: list[Shape]) -> tuple[Layer, str]:
    shapes = layer.blob_shapes(*bottoms)
    arrays = {role: filled(layer, role, shape) for role, shape in shapes.items()}
    values = ", ".join(
        f"{role} {array.flat[0]:.7g}" if (array == array.flat[0]).all() else f"{role} bilinear"
        for role, array in arrays.items()
    )
    blobs = Blobs({role: Blob.of(array) for role, array in arrays.items()})
    return layer.changed(blobs=blobs, uncovered=""), values
