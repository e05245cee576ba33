"""From a net as it was trained to the net as it is used.

What a train_val.prototxt has and a deploy.prototxt has not: data layers, losses, accuracies, and
the layers that serve them alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.layers import build_layer
from bridge.layers.data_source import DataSource, Extents, known
from bridge.layers.dummy_data import DummyData
from bridge.layers.loss import Loss
from bridge.schema import Layer, Net, Opaque, Shape, times
from bridge.schema.flow import Value, Wiring
from bridge.schema.message import Message

Given = Mapping[str, Sequence["int | str"]]
"""Extents of inputs by blob name; a name in place of a number is an open extent."""


def inference_net(net: Net, inputs: Given | None = None) -> Net:
    """The net without what it needs in training only.

    Data layers become Input layers, without the labels when nothing else reads them; of their shapes
    what is not in ``inputs`` is told by the layers' own parameters and by the weights that they feed.
    A loss becomes its inference half, SoftmaxWithLoss a Softmax and SigmoidCrossEntropyLoss a Sigmoid
    with a top ``prob``, unless the net has one; other losses and accuracies go, and with them what
    only they read. A net that has no such layers is returned as it is.

    Args:
        net: The net.
        inputs: Extents of input blobs.

    Returns:
        The net, with a note for each thing that was done.
    """
    given = inputs or {}
    if not any(_serves_training(layer) or _is_source(layer, given) for layer in net.layers):
        return net
    return _Conversion(net, given).run()


def training_net(net: Net, inputs: Given | None = None) -> Net:
    """The net with Input layers in place of its data layers, and its losses, so that it can be trained.

    Args:
        net: The net, for the phase TRAIN.
        inputs: Extents of input blobs, where the data layers' parameters do not tell them.
    """
    given = inputs or {}
    layers: list[Layer] = []
    notes: list[str] = []
    for layer in net.layers:
        made = _as_inputs(net, layer, layer.tops, given) if _is_source(layer, given) else []
        notes += [_input_note(layer, new) for new in made]
        layers += made or [layer]
    return net.replace(layers=tuple(layers), notes=(*net.notes, *notes))


def _serves_training(layer: Layer) -> bool:
    """A layer that only training needs; of unknown types, those that call themselves so or have a loss weight."""
    if isinstance(layer, Opaque):
        return layer.type.endswith(("Loss", "Accuracy")) or any(layer.definition.all("loss_weight"))
    return layer.training_only


def _is_source(layer: Layer, given: Given) -> bool:
    """A layer whose tops are to be fed: it reads data, or makes random numbers, or is asked to be an input."""
    if isinstance(layer, DummyData):
        return None in layer.values or any(top in given for top in layer.tops)
    return isinstance(layer, DataSource) or (isinstance(layer, Opaque) and not layer.bottoms and not layer.blobs)


class _Conversion:
    """One run of :func:`inference_net`."""

    def __init__(self, net: Net, given: Given) -> None:
        self.net, self.given, self.wiring = net, given, Wiring(net)
        self.sources = {index for index, layer in enumerate(net.layers) if _is_source(layer, given)}
        self.dropped = {
            index: layer
            for index, layer in enumerate(net.layers)
            if index not in self.sources and _serves_training(layer)
        }
        self.halves: dict[int, Layer] = {}
        self.needed: set[Value] = set()
        self.notes: list[str] = []

    def run(self) -> Net:
        judged = self._judged()
        self._find_halves(judged)
        wanted = {value for values in judged.values() for value in values}
        self.sources |= self._stand_ins(wanted)
        self.needed = self.wiring.ancestry(wanted | self._own_outputs(wanted))
        layers: list[Layer] = []
        for index, layer in enumerate(self.net.layers):
            layers += self._converted(index, layer)
        self._tell_left_out()
        return self.net.replace(layers=tuple(layers), notes=(*self.net.notes, *self.notes))

    # -- what is wanted --------------------------------------------------------------------------

    def _judged(self) -> dict[int, list[Value]]:
        """The values that each dropped layer judges, but for those that only auxiliary losses do."""
        judged = {index: self._predictions(index, layer) for index, layer in self.dropped.items()}
        auxiliary = self._auxiliary()
        minor = {value for index in auxiliary for value in judged[index]}
        for index, values in judged.items():
            if isinstance(self.dropped[index], Loss) and index not in auxiliary:
                minor.difference_update(values)
        return {index: [value for value in values if value not in minor] for index, values in judged.items()}

    def _predictions(self, index: int, layer: Layer) -> list[Value]:
        """The values that a dropped layer judges, and that the net is therefore for."""
        count = layer.predictions if isinstance(layer, Loss) else 1
        values = [self.wiring.behind_splits(value) for value in self.wiring.reads[index][:count]]
        return [value for value in values if self.wiring.learned(value)] or values[:1]

    def _auxiliary(self) -> set[int]:
        """Losses that only helped in training: another one has the same labels and a greater weight."""
        rivals: dict[tuple[str, Value], list[tuple[float, int]]] = {}
        for index, layer in self.dropped.items():
            if isinstance(layer, Loss) and layer.inference_type and len(layer.bottoms) > 1:
                labels = self.wiring.behind_splits(self.wiring.reads[index][1])
                rivals.setdefault((layer.type, labels), []).append((layer.loss_weights[0], index))
        return {index for losses in rivals.values() for weight, index in losses if weight < max(losses)[0]}

    def _stand_ins(self, judged: set[Value]) -> set[int]:
        """Layers of constants, where what is judged hangs on nothing else: they stand for the data."""
        origins = {index for index, _ in self.wiring.origins(judged)}
        if any(index < 0 or index in self.sources or self.net.layers[index].type == "Input" for index in origins):
            return set()
        return {index for index in origins if isinstance(self.net.layers[index], DummyData)}

    def _own_outputs(self, judged: set[Value]) -> set[Value]:
        """The net's outputs that do not hang on labels alone."""
        told = {value for index in self.dropped for value in self.wiring.reads[index]} - judged
        beside = {(i, k) for i in self.sources for k, _ in enumerate(self.net.layers[i].tops) if k}
        labels = (self.wiring.origins(told) | beside) - self.wiring.origins(judged)
        unread = {value for value in self.wiring.unread() if value[0] not in {*self.dropped, *self.sources}}
        return {value for value in unread if self.wiring.origins({value}) - labels}

    # -- the losses' inference halves ----------------------------------------------------------------

    def _find_halves(self, judged: Mapping[int, Sequence[Value]]) -> None:
        for index, values in judged.items():
            layer = self.dropped[index]
            kind = layer.inference_type if isinstance(layer, Loss) else ""
            if kind and values and not self._has(kind, values[0]):
                self.halves[index] = self._half(layer, kind, self.wiring.name(values[0]))
                self.notes.append(f"{layer.label} became layer '{self.halves[index].name}' ({kind})")

    def _has(self, kind: str, value: Value) -> bool:
        """Whether the net has that layer on the value already, or the value comes from one."""
        readers = {self.net.layers[index].type for index in self.wiring.readers(value) if index not in self.dropped}
        return kind in readers or (value[0] >= 0 and self.net.layers[value[0]].type == kind)

    def _half(self, layer: Layer, kind: str, bottom: str) -> Layer:
        top = layer.tops[1] if len(layer.tops) > 1 else self._free("prob", f"{bottom}_prob")
        definition = Message(layer.definition.where, name=self._free(top, layer.name), type=kind)
        definition.set("bottom", bottom)
        definition.set("top", top)
        axis = getattr(layer, "axis", 1)
        if axis != 1:
            definition.set("softmax_param", Message(axis=axis))
        return build_layer(definition)

    def _free(self, *wishes: str) -> str:
        """The first wish that names nothing in the new net; if all are taken, the last with a number."""
        layers = [layer for index, layer in enumerate(self.net.layers) if index not in self.dropped]
        taken: set[str] = set()
        for layer in (*layers, *self.halves.values()):
            taken.update((layer.name, *layer.bottoms, *layer.tops))
        numbered = (f"{wishes[-1]}_{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain(wishes, numbered) if name not in taken)

    # -- the layers ----------------------------------------------------------------------------------

    def _converted(self, index: int, layer: Layer) -> list[Layer]:
        """What stands in the new net in the place of a layer."""
        if index in self.dropped:
            return [self.halves[index]] if index in self.halves else []
        if not layer.tops:
            return self._silence(index, layer)
        tops = [top for place, top in enumerate(layer.tops) if (index, place) in self.needed]
        if index in self.sources:
            made = _as_inputs(self.net, layer, tops, self.given)
            self.notes += map(_input_note, itertools.repeat(layer), made)
            return made
        if not tops or len(tops) == len(layer.tops):
            return [layer] if tops else []
        return [_with_tops(layer, tops)] if layer.type in ("Input", "Split") else [layer, self._unused(layer, tops)]

    def _silence(self, index: int, layer: Layer) -> list[Layer]:
        """A layer without tops keeps the bottoms that there still are."""
        bottoms = [self.wiring.name(value) for value in self.wiring.reads[index] if value in self.needed]
        if len(bottoms) == len(layer.bottoms):
            return [layer]
        return [_redefined(layer, bottom=bottoms)] if bottoms else []

    def _unused(self, layer: Layer, tops: Sequence[str]) -> Layer:
        """A Silence for the tops that nobody reads any more, lest they become outputs."""
        unread = [top for top in layer.tops if top not in tops]
        return build_layer(Message(name=self._free(f"{layer.name}_unused"), type="Silence", bottom=[*unread]))

    def _tell_left_out(self) -> None:
        gone = [
            layer.label
            for index, layer in enumerate(self.net.layers)
            if index not in self.halves and index not in self.sources and self._is_gone(index, layer)
        ]
        if gone:
            self.notes.append(f"left out, as they serve training only: {', '.join(gone)}")

    def _is_gone(self, index: int, layer: Layer) -> bool:
        values = [(index, place) for place, _ in enumerate(layer.tops)] or self.wiring.reads[index]
        return index in self.dropped or self.needed.isdisjoint(values)


def _as_inputs(net: Net, layer: Layer, tops: Sequence[str], given: Given) -> list[Layer]:
    """Input layers for some of a data layer's tops."""
    made = []
    for top in tops:
        name = layer.name if len(tops) == 1 else top
        definition = Message(layer.definition.where, name=name, type="Input", top=top)
        shape = _shape(net, layer, top, given)
        if shape is not None:
            definition.set("input_param", Message(shape=Message(dim=[*shape])))
        made.append(build_layer(definition))
    return made


def _shape(net: Net, layer: Layer, top: str, given: Given) -> Shape | None:
    own = _own_extents(net, layer, top)
    wanted: Sequence[int | str | None] = given.get(top, own or ())
    told = own if own and len(own) == len(wanted) else (None,) * len(wanted)
    return known(tuple(a if isinstance(a, int) else b for a, b in zip(wanted, told, strict=True)))


def _own_extents(net: Net, layer: Layer, top: str) -> Extents | None:
    """What the layer's parameters, and the weights that it feeds, tell of a top."""
    place = layer.tops.index(top)
    if isinstance(layer, DummyData):
        return layer.shapes[place]
    extents: Extents | None = layer.extents[place] if isinstance(layer, DataSource) else None
    if extents and len(extents) == 4 and extents[1] is None:
        return (extents[0], channels_of(net, top), *extents[2:])
    return extents


def channels_of(net: Net, blob: str) -> int | None:
    """The channels of a blob, from the weight of a convolution that reads it."""
    for layer in net.layers:
        if blob in layer.bottoms and layer.type == "Convolution" and "weight" in layer.blobs:
            return layer.blobs.blob("weight").shape[1] * layer.group
    return None


def _input_note(layer: Layer, made: Layer) -> str:
    shapes: Any = getattr(made, "input_shapes", ())
    extent = f" of {times(shapes[0])}" if shapes else ""
    return f"{layer.label} became the input '{made.tops[0]}'{extent}"


def _with_tops(layer: Layer, tops: Sequence[str]) -> Layer:
    """An Input or Split with some of its tops."""
    shapes: Any = getattr(layer, "input_shapes", None)
    kept = [place for place, top in enumerate(layer.tops) if top in tops]
    if not shapes:
        return _redefined(layer, top=[*tops])
    dims = [Message(dim=[*shapes[place]]) for place in kept if place < len(shapes)]
    return _redefined(layer, top=[*tops], input_param=Message(shape=[*dims]))


def _redefined(layer: Layer, **fields: Any) -> Layer:
    """The layer with some fields of its definition replaced."""
    definition = layer.definition.copy()
    for name, value in fields.items():
        definition.set(name, *(value if isinstance(value, list) else [value]))
    made = build_layer(definition)
    return dataclasses.replace(made, blobs=layer.blobs, uncovered=layer.uncovered)
