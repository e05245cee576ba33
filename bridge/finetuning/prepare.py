"""The net that is trained: the files' net with new heads, inputs in place of data layers, and a loss."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

import bridge
from bridge.caffe_files.inference import channels_of, training_net
from bridge.errors import BridgeError, ModelError, UsageError
from bridge.finetuning.config import Config
from bridge.finetuning.selection import frozen_layers
from bridge.layers import build_layer
from bridge.layers.data_source import DataSource
from bridge.layers.input import Input
from bridge.layers.softmax_with_loss import SoftmaxWithLoss
from bridge.schema import Net

LABEL = "label"


class Prepared(NamedTuple):
    """A net to train.

    Attributes:
        net: The net, with new heads, new layers, inputs in place of data layers, and a loss.
        source: The data layer that it had, if it had one.
        for_training: Whether its prototxt was made for training, so that its batch size is one to train with.
        new: Names of the layers whose parameters come from fillers.
        frozen: Names of the layers that are frozen.
        notes: Remarks for the user, one line each.
    """

    net: Net
    source: DataSource | None
    for_training: bool
    new: tuple[str, ...]
    frozen: tuple[str, ...]
    notes: list[str]


def prepared(config: Config, net: Net | None = None) -> Prepared:
    """The net that a run trains, by its settings.

    Args:
        config: The settings.
        net: The net in memory; ``None`` loads the files.

    Raises:
        BridgeError: The files make no net, a head or a pattern fits no layer, or there is no single place for a loss.
    """
    heads = [Head.parse(text) for text in config.heads]
    if net is None:
        net = bridge.load(*config.files, **{"phase": "TRAIN", **config.reading})
    net, new = with_new_layers(with_heads(net, heads))
    source = data_layer(net)
    for_training = source is not None or has_loss(net)
    net = with_loss(with_inputs(net, config.crop or config.resize))
    fresh = tuple(dict.fromkeys([*new, *(head.name or head.layer for head in heads)]))
    frozen = frozen_layers(net, config.selection, fresh)
    notes = [*net.notes, *([f"new parameters, from their fillers: {', '.join(fresh)}"] if fresh else []), *frozen.notes]
    return Prepared(net, source, for_training, fresh, frozen.names, notes)


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
            raise UsageError(
                f"--head {text}: expected LAYER=10 or LAYER=NEW_NAME:10",
                hint="the layer is mostly the last one that has a weight in what 'bridge info FILES' lists",
            )
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
        try:
            new = old.resized(head.outputs, head.name)
        except UsageError as error:
            raise error.at(net.where) from None
        net = net.replace(layers=tuple(new if layer is old else layer for layer in net.layers))
    return net


def with_new_layers(net: Net) -> tuple[Net, list[str]]:
    """Leave layers that the weights file does not have to their fillers, as Caffe does.

    Returns:
        The net, and the names of these layers.
    """
    new = [layer.name for layer in net.layers if layer.uncovered]
    layers = tuple(layer.changed(uncovered="") for layer in net.layers)
    return net.replace(layers=layers), new


def with_loss(net: Net) -> Net:
    """The net with a loss at its end.

    A net that has losses keeps them. In a net for deployment, a softmax loss over the same scores takes the
    place of the Softmax at the end; a net without a Softmax gets a softmax loss over its output.

    Raises:
        ModelError: There is no single place for a loss.
    """
    if has_loss(net):
        return with_named_losses(net)
    tails = [layer for layer in net.layers if layer.probabilities and layer.tops[0] in net.outputs]
    if len(tails) > 1 or (not tails and len(net.outputs) != 1):
        raise ModelError(
            f"the net has {len(net.outputs)} outputs ({', '.join(net.outputs)})",
            expected="one Softmax to train",
            where=net.where,
            hint="give a train prototxt with its losses",
        )
    scores = tails[0].bottoms[0] if tails else net.outputs[0]
    loss = build_layer(SoftmaxWithLoss.define("loss", [scores, LABEL], ["loss"]))
    batch = next((shape[0] for shape in net.inputs.values() if shape), 1)
    kept = [layer for layer in net.layers if layer not in tails]
    return net.replace(layers=(build_layer(Input.of(LABEL, LABEL, (batch,))), *kept, loss))


def has_loss(net: Net) -> bool:
    """Whether the net has a loss to train: a top with a loss weight."""
    return any(any(layer.loss_weights) for layer in net.layers)


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
        if isinstance(layer, DataSource) and made.inputs.get(layer.tops[0]) is None:
            if not size:
                problem = f"the size of the net's images is not known: data layer '{layer.name}' has no crop_size"
                raise ModelError(problem, where=net.where, hint="--crop 227,227 gives it, as height and width")
            channels = channels_of(net, layer.tops[0])
            made = training_net(net, {layer.tops[0]: (1, channels or 3, *size), **dict.fromkeys(layer.tops[1:], (1,))})
    return _with_targets(made) if any(isinstance(layer, DataSource) for layer in net.layers) else made


def _with_targets(net: Net) -> Net:
    """The net with as many labels for each image as a regression's loss compares; data layers do not say how many."""
    rest = net.replace(layers=tuple(layer for layer in net.layers if not layer.is_loss))
    try:
        shapes = rest.flow.final_shapes()
    except BridgeError:  # the error is told where the net is used
        return net
    shaped = {
        layer.bottoms[1]: shapes[layer.bottoms[0]]
        for layer in net.layers
        if layer.is_loss and not layer.classifies and layer.default_loss_weight and len(layer.bottoms) > 1
        if layer.bottoms[1] in net.inputs and layer.bottoms[0] in shapes
    }
    return net.with_input_shapes(shaped)


def with_named_losses(net: Net) -> Net:
    """The net, in which each loss without a top has one of the layer's name, as in Caffe."""
    unnamed = [layer for layer in net.layers if not layer.tops and any(layer.loss_weights)]
    return net.replace(
        layers=tuple(layer.changed(tops=[layer.name]) if layer in unnamed else layer for layer in net.layers)
    )
