"""A net as a prototxt and a caffemodel, for engines that have their own Caffe importer."""

from __future__ import annotations

import dataclasses
import io

from bridge.caffe_files import prototxt
from bridge.engines import Arrays
from bridge.layers.input import Input
from bridge.schema import Net
from bridge.schema.message import Message


def definition_of(net: Net, inputs: Arrays) -> str:
    """The net as a prototxt, with an ``Input`` layer for each input that none declares.

    The rules by which its layers were chosen are left out: nobody is to choose once more.
    """
    message = net.to_message()
    declared = {top for layer in net.layers if layer.is_input for top in layer.tops}
    layers = [layer.copy() for layer in message.messages("layer")]
    message.set("layer")
    for name in net.inputs:
        if name in inputs and name not in declared:
            message.add("layer", Input.of(f"input {name}", name, inputs[name].shape))
    for layer in layers:
        for rule in ("include", "exclude", "phase"):
            layer.set(rule)
        message.add("layer", layer)
    return prototxt.format(message)


def weights_of(net: Net) -> bytes:
    """The blobs as a caffemodel, with the name and the type of each layer only."""
    from bridge.files.writers import caffemodel

    layers = tuple(
        dataclasses.replace(layer, definition=Message(name=layer.name, type=layer.type))
        for layer in net.layers
        if layer.blobs
    )
    stream = io.BytesIO()
    caffemodel.write(net.replace(layers=layers, definition=Message()), stream)
    return stream.getvalue()
