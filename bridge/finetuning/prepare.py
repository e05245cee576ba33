"""The net that is trained: a new head, a loss, and which layers stay as they are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from bridge.caffe_files.inference import channels_of, training_net
from bridge.errors import ModelError, UsageError, nearest
from bridge.layers import build_layer
from bridge.layers.data_source import DataSource
from bridge.schema import Layer, Net, Shape
from bridge.schema.message import Message, Value

LABEL = "label"


@dataclasses.dataclass(frozen=True)
class Head:
    """``fc8=10`` or ``fc8=fc8_new:10``: a layer that gets new outputs, and perhaps a new name."""

    layer: str
    outputs: int
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Head:
        """From the text of ``--head``.

        Raises:
            UsageError: It is not of that form.
        """
        match = re.fullmatch(r"(?P<layer>.+?)=(?:(?P<name>.+):)?(?P<outputs>\d+)", text)
        if match is None or int(match["outputs"]) < 1:
            raise UsageError(f"--head {text}: expected LAYER=10 or LAYER=NEW_NAME:10")
        return cls(match["layer"], int(match["outputs"]), match["name"] or "")


def with_heads(net: Net, heads: Iterable[Head]) -> Net:
    """The net with other numbers of outputs; the layers' blobs are left to their fillers.

    Raises:
        NotFoundError: There is no such layer.
        UsageError: The layer has no ``num_output``, is named twice, or its new name is taken.
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
    """Layers that the weights file does not have are left to their fillers, as Caffe does; their names."""
    new = [layer.name for layer in net.layers if layer.uncovered]
    layers = tuple(dataclasses.replace(layer, uncovered="") for layer in net.layers)
    return net.replace(layers=layers), new


def with_loss(net: Net) -> Net:
    """The net with a loss at its end.

    A net that has losses stays as it is. In one for deployment, the Softmax at the end
    becomes a SoftmaxWithLoss over the same scores; where there is none, one is added
    to the net's one output.

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
    """The layer that the net's training images come from, if it has one."""
    return next((layer for layer in net.layers if isinstance(layer, DataSource)), None)


def with_inputs(net: Net, size: tuple[int, int] | None) -> Net:
    """The net with inputs in place of its data layers.

    Args:
        net: A net for training.
        size: (height, width) of its images, where its data layer does not tell.
    """
    made = training_net(net)
    for layer in net.layers:
        if isinstance(layer, DataSource) and made.inputs.get(layer.tops[0]) is None and size:
            channels = channels_of(net, layer.tops[0])
            made = training_net(net, {layer.tops[0]: (1, channels or 3, *size), **dict.fromkeys(layer.tops[1:], (1,))})
    return made


def with_named_losses(net: Net) -> Net:
    """A loss without a top gets one of its own name, as Caffe gives it."""
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
    return layer.default_loss_weight > 0


def matching(net: Net, patterns: Iterable[str]) -> list[str]:
    """Names of the layers that the patterns choose (``conv*``), in order.

    Raises:
        UsageError: A pattern chooses no layer with blobs.
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
    """Whether the layer has blobs, stored or to be filled."""
    return bool(layer.blobs) or bool(layer.roles(0))
