"""The net that is trained: the files' net with new heads, inputs in place of data layers, and a loss."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import bridge
from bridge.caffe_files.inference import channels_of, training_net
from bridge.errors import ModelError, UsageError, nearest
from bridge.finetuning.config import Config
from bridge.layers import build_layer
from bridge.layers.data_source import DataSource
from bridge.schema import Layer, Net, Shape
from bridge.schema.message import Message, Value

LABEL = "label"


class Prepared(NamedTuple):
    """A net to train.

    Attributes:
        net: The net, with new heads, new layers, inputs in place of data layers, and a loss.
        source: The data layer that it had, if it had one.
        for_training: Whether its prototxt was made for training, so that its batch size is one to train with.
        notes: Remarks for the user, one line each.
    """

    net: Net
    source: DataSource | None
    for_training: bool
    notes: list[str]


def prepared(config: Config) -> Prepared:
    """The net that a run trains, by its settings.

    Raises:
        BridgeError: The files make no net, a head or a pattern fits no layer, or there is no single place for a loss.
    """
    heads = [Head.parse(text) for text in config.heads]
    net = bridge.load(*config.files, **{"phase": "TRAIN", **config.reading})
    net, new = with_new_layers(with_heads(net, heads))
    source = data_layer(net)
    for_training = source is not None or any(map(is_loss, net.layers))
    net = with_loss(with_inputs(net, config.crop or config.resize))
    fresh = [*new, *(head.name or head.layer for head in heads)]
    notes = list(net.notes)
    if fresh:
        notes.append(f"new parameters, from their fillers: {', '.join(fresh)}")
        still = [name for name in matching(net, config.freeze) if name in fresh]
        if still:
            notes.append(f"new parameters are frozen, and stay as their fillers made them: {', '.join(still)}")
    return Prepared(net, source, for_training, notes)


@dataclasses.dataclass(frozen=True)
class Head:
    """A new head, such as ``fc8=10`` or ``fc8=fc8_new:10``: a layer gets new outputs, and perhaps a new name."""

    layer: str
    outputs: int
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Head:
        """The head that ``--head`` describes.

        Raises:
            UsageError: The text has another form.
        """
        match = re.fullmatch(r"(?P<layer>.+?)=(?:(?P<name>.+):)?(?P<outputs>\d+)", text)
        if match is None or int(match["outputs"]) < 1:
            raise UsageError(f"--head {text}: expected LAYER=10 or LAYER=NEW_NAME:10")
        return cls(match["layer"], int(match["outputs"]), match["name"] or "")


def with_heads(net: Net, heads: Iterable[Head]) -> Net:
    """The net with new heads, whose blobs come from their fillers.

    Raises:
        NotFoundError: The net has no layer of a head's name.
        UsageError: The layer has no ``num_output``, is named twice, or its new name is that of another layer.
    """
    given: set[str] = set()
    for head in heads:
        old = net[head.layer]
        if head.layer in given:
            raise UsageError(f"--head gives layer '{head.layer}' two heads", where=net.where)
        if head.name and head.name != old.name and head.name in net:
            raise UsageError(
                f"--head {head.layer}={head.name}:{head.outputs}: the net has a layer '{head.name}' already"
            )
        given.add(head.name or head.layer)
        field = getattr(old, "message", "")
        if not hasattr(old, "num_output"):
            raise UsageError(f"{old.label} has no num_output to change", where=net.where)
        definition = old.definition.copy()
        params = definition.message(field)
        params.set("num_output", head.outputs)
        if "weight_filler" not in params:  # Caffe's own default, zeros, does not train in a deeper net
            params.set("weight_filler", Message(type="xavier"))
        definition.set("name", head.name or old.name)
        new = build_layer(definition)
        net = net.replace(layers=tuple(new if layer is old else layer for layer in net.layers))
    return net


def with_new_layers(net: Net) -> tuple[Net, list[str]]:
    """Leave layers that the weights file does not have to their fillers, as Caffe does.

    Returns:
        The net, and the names of these layers.
    """
    new = [layer.name for layer in net.layers if layer.uncovered]
    layers = tuple(dataclasses.replace(layer, uncovered="") for layer in net.layers)
    return net.replace(layers=layers), new


def with_loss(net: Net) -> Net:
    """The net with a loss at its end.

    A net that has losses keeps them. In a net for deployment, the Softmax at the end becomes a
    SoftmaxWithLoss over the same scores; a net without a Softmax gets a SoftmaxWithLoss over its output.

    Raises:
        ModelError: There is no single place for a loss.
    """
    if any(is_loss(layer) for layer in net.layers):
        return with_named_losses(net)
    tails = [layer for layer in net.layers if layer.type == "Softmax" and layer.tops[0] in net.outputs]
    if len(tails) > 1 or (not tails and len(net.outputs) != 1):
        raise ModelError(
            f"the net has {len(net.outputs)} outputs ({', '.join(net.outputs)}), expected one Softmax to train",
            where=net.where,
            hint="give a train prototxt with its losses",
        )
    scores = tails[0].bottoms[0] if tails else net.outputs[0]
    definition = Message(name="loss", type="SoftmaxWithLoss", bottom=[scores, LABEL], top="loss")
    batch = next((shape[0] for shape in net.inputs.values() if shape), 1)
    kept = [layer for layer in net.layers if layer not in tails]
    return net.replace(layers=(_input(LABEL, {LABEL: (batch,)}), *kept, build_layer(definition)))


def _input(name: str, tops: Mapping[str, Shape]) -> Layer:
    shapes: list[Value] = [Message(dim=list(shape)) for shape in tops.values()]
    return build_layer(Message(name=name, type="Input", top=list(tops), input_param=Message(shape=shapes)))


def data_layer(net: Net) -> DataSource | None:
    """The data layer that gives the net's training images, if it has one."""
    return next((layer for layer in net.layers if isinstance(layer, DataSource)), None)


def with_inputs(net: Net, size: tuple[int, int] | None) -> Net:
    """The net with inputs in place of its data layers.

    Args:
        net: A net for training.
        size: (height, width) of its images, where its data layer does not give it.
    """
    made = training_net(net)
    for layer in net.layers:
        if isinstance(layer, DataSource) and made.inputs.get(layer.tops[0]) is None and size:
            channels = channels_of(net, layer.tops[0])
            made = training_net(net, {layer.tops[0]: (1, channels or 3, *size), **dict.fromkeys(layer.tops[1:], (1,))})
    return made


def with_named_losses(net: Net) -> Net:
    """The net, in which each loss without a top has one of the layer's name, as in Caffe."""
    layers = []
    for layer in net.layers:
        if is_loss(layer) and not layer.tops:
            definition = layer.definition.copy()
            definition.set("top", layer.name)
            layer = build_layer(definition)
        layers.append(layer)
    return net.replace(layers=tuple(layers))


def is_loss(layer: Layer) -> bool:
    """Whether the layer's first top is a loss by its type."""
    return bool(getattr(layer, "default_loss_weight", 0.0))


def matching(net: Net, patterns: Iterable[str]) -> list[str]:
    """Names of the layers with parameters that match the patterns, such as ``conv*``.

    Raises:
        UsageError: A pattern matches no layer with parameters.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [layer.name for layer in net.layers if fnmatchcase(layer.name, pattern) and has_parameters(layer)]
        if not found:
            hint = nearest(pattern, net.layer_names)
            raise UsageError(f"no layer with parameters is called '{pattern}'", where=net.where, hint=hint)
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def has_parameters(layer: Layer) -> bool:
    """Whether the layer has blobs, stored ones or ones that its fillers make."""
    roles = getattr(layer, "roles", None)
    return bool(layer.blobs) or bool(roles and roles(0))
