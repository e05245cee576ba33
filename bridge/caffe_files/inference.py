"""From a net as it was trained to the net as it is used.

What a train_val.prototxt has and a deploy.prototxt has not: data layers, losses, accuracies, and
the layers that serve them alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from bridge.errors import UsageError
from bridge.layers import build_layer
from bridge.layers.data_source import known
from bridge.layers.input import Input
from bridge.layers.silence import Silence
from bridge.schema import Layer, Net, ServedNet, Shape, as_served, times
from bridge.schema.flow import BlobValue
from bridge.schema.hooks import PartialShape

GivenExtents = Mapping[str, Sequence["int | str"]]
"""Extents of inputs by blob name; a name in place of a number is an open extent."""


def inference_net(net: Net, inputs: GivenExtents | None = None, outputs: Sequence[str] = ()) -> ServedNet:
    """The net without what it needs in training only.

    Data layers become Input layers, without the labels when nothing else reads them; of their shapes
    what is not in ``inputs`` is told by the layers' own parameters and by the weights that they feed.
    A loss becomes its inference half, SoftmaxWithLoss a Softmax and SigmoidCrossEntropyLoss a Sigmoid
    with a top ``prob``, unless the net has one; other losses and accuracies go, and with them what
    only they read. A net without such layers keeps all of its layers.

    Args:
        net: The net.
        inputs: Extents of input blobs.
        outputs: Blobs to compute, where not all that the net computes is wanted, see :func:`select_outputs`.

    Returns:
        The net, with a note for each thing that was done.

    Raises:
        NotFoundError: ``outputs`` names a blob that no layer writes.
        UsageError: ``outputs`` names an input, or a blob of training.
    """
    given = inputs or {}
    if outputs:
        net = select_outputs(net, outputs, given)
    if isinstance(net, ServedNet) and not inputs:
        return net
    if any(layer.serves_training or layer.feeds(given) for layer in net.layers):
        net = _Conversion(net, given).run()
        if gone := [name for name in net.selected if name not in net.outputs]:
            raise UsageError(f"blob '{gone[0]}' is computed in training only", where=net.where)
    return net if isinstance(net, ServedNet) else as_served(net)


def select_outputs(net: Net, outputs: Sequence[str], inputs: GivenExtents | None = None) -> Net:
    """The part of a net that computes some blobs, those of its inference form among them, such as ``prob``.

    Args:
        net: The net.
        outputs: Names of blobs.
        inputs: Extents of input blobs.

    Raises:
        NotFoundError: No layer writes a blob of that name.
        UsageError: A blob is an input.
    """
    if not set(outputs) <= net.flow.last.keys():
        served = inference_net(net, inputs)
        if set(outputs) <= served.flow.last.keys():
            return served.with_outputs(*outputs)
    return net.with_outputs(*outputs)


def training_net(net: Net, inputs: GivenExtents | None = None) -> Net:
    """The net with Input layers in place of its data layers, and its losses, so that it can be trained.

    Args:
        net: The net, for the phase TRAIN.
        inputs: Extents of input blobs, where the data layers' parameters do not tell them.
    """
    given = inputs or {}
    layers: list[Layer] = []
    notes: list[str] = []
    for layer in net.layers:
        made = _as_inputs(net, layer, layer.tops, given) if layer.feeds(given) else []
        notes += [_input_note(layer, new) for new in made]
        layers += made or [layer]
    return net.replace(layers=tuple(layers), notes=(*net.notes, *notes))


class _Conversion:
    """One run of :func:`inference_net`."""

    def __init__(self, net: Net, given: GivenExtents) -> None:
        self.net, self.given, self.flow = net, given, net.flow
        self.sources = {index for index, layer in enumerate(net.layers) if layer.feeds(given)}
        self.dropped = {
            index: layer
            for index, layer in enumerate(net.layers)
            if index not in self.sources and layer.serves_training
        }
        self.halves: dict[int, Layer] = {}
        self.needed: set[BlobValue] = set()
        self.notes: list[str] = []

    def run(self) -> Net:
        judged = self._judged()
        self._find_halves(judged)
        wanted = {value for values in judged.values() for value in values}
        self.sources |= self._stand_ins(wanted)
        self.needed = self.flow.ancestry(wanted | self._own_outputs(wanted))
        layers: list[Layer] = []
        for index, layer in enumerate(self.net.layers):
            layers += self._converted(index, layer)
        self._tell_left_out()
        return self.net.replace(layers=tuple(layers), notes=(*self.net.notes, *self.notes))

    # -- what is wanted --------------------------------------------------------------------------

    def _judged(self) -> dict[int, list[BlobValue]]:
        """The values that each dropped layer judges, but for those that only auxiliary losses do."""
        judged = {index: self._predictions(index, layer) for index, layer in self.dropped.items()}
        auxiliary = self._auxiliary()
        minor = {value for index in auxiliary for value in judged[index]}
        for index, values in judged.items():
            if self.dropped[index].is_loss and index not in auxiliary:
                minor.difference_update(values)
        return {index: [value for value in values if value not in minor] for index, values in judged.items()}

    def _predictions(self, index: int, layer: Layer) -> list[BlobValue]:
        """The values that a dropped layer judges, and that the net is therefore for."""
        values = [self.flow.behind_splits(value) for value in self.flow.reads[index][: layer.predictions]]
        learned = self.flow.learned()
        return [value for value in values if value.layer >= 0 and learned[value.layer]] or values[:1]

    def _auxiliary(self) -> set[int]:
        """Losses that only helped in training: another one has the same labels and a greater weight."""
        rivals: dict[tuple[str, BlobValue], list[tuple[float, int]]] = {}
        for index, layer in self.dropped.items():
            if layer.is_loss and layer.inference_type and len(layer.bottoms) > 1:
                labels = self.flow.behind_splits(self.flow.reads[index][1])
                rivals.setdefault((layer.type, labels), []).append((layer.loss_weights[0], index))
        return {index for losses in rivals.values() for weight, index in losses if weight < max(losses)[0]}

    def _stand_ins(self, judged: set[BlobValue]) -> set[int]:
        """Layers of constants, where what is judged hangs on nothing else: they stand for the data."""
        origins = {index for index, _ in self.flow.origins(judged)}
        if any(index < 0 or index in self.sources or self.net.layers[index].is_input for index in origins):
            return set()
        return {index for index in origins if self.net.layers[index].constant_tops}

    def _own_outputs(self, judged: set[BlobValue]) -> set[BlobValue]:
        """The net's outputs that do not hang on labels alone."""
        told = {value for index in self.dropped for value in self.flow.reads[index]} - judged
        beside = {BlobValue(i, k) for i in self.sources for k, _ in enumerate(self.net.layers[i].tops) if k}
        labels = (self.flow.origins(told) | beside) - self.flow.origins(judged)
        unread = {value for value in self.flow.ends() if value[0] not in {*self.dropped, *self.sources}}
        return {value for value in unread if self.flow.origins({value}) - labels}

    # -- the losses' inference halves ----------------------------------------------------------------

    def _find_halves(self, judged: Mapping[int, Sequence[BlobValue]]) -> None:
        for index, values in judged.items():
            layer = self.dropped[index]
            kind = layer.inference_type
            if kind and values and not self._has(kind, values[0]):
                self.halves[index] = self._half(layer, self.flow.name(values[0]))
                self.notes.append(f"{layer.label} became layer '{self.halves[index].name}' ({kind})")

    def _has(self, kind: str, value: BlobValue) -> bool:
        """Whether the net has that layer on the value already, or the value comes from one."""
        readers = {self.net.layers[index].type for index in self.flow.readers(value) if index not in self.dropped}
        return kind in readers or (value[0] >= 0 and self.net.layers[value[0]].type == kind)

    def _half(self, layer: Layer, bottom: str) -> Layer:
        top = layer.tops[1] if len(layer.tops) > 1 else self._free("prob", f"{bottom}_prob")
        return build_layer(layer.inference_layer(self._free(top, layer.name), bottom, top))

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
        places = [place for place, _ in enumerate(layer.tops) if BlobValue(index, place) in self.needed]
        tops = [layer.tops[place] for place in places]
        if index in self.sources:
            made = _as_inputs(self.net, layer, tops, self.given)
            self.notes += map(_input_note, itertools.repeat(layer), made)
            return made
        if not tops or len(tops) == len(layer.tops):
            return [layer] if tops else []
        fewer = layer.keeping_tops(places)
        return [layer, self._unused(layer, tops)] if fewer is None else [fewer]

    def _silence(self, index: int, layer: Layer) -> list[Layer]:
        """A layer without tops keeps the bottoms that there still are."""
        bottoms = [self.flow.name(value) for value in self.flow.reads[index] if value in self.needed]
        if len(bottoms) == len(layer.bottoms):
            return [layer]
        return [layer.changed(bottoms=bottoms)] if bottoms else []

    def _unused(self, layer: Layer, tops: Sequence[str]) -> Layer:
        """A Silence for the tops that nobody reads any more, lest they become outputs."""
        unread = [top for top in layer.tops if top not in tops]
        return build_layer(Silence.define(self._free(f"{layer.name}_unused"), bottoms=unread))

    def _tell_left_out(self) -> None:
        gone = [
            layer.label
            for index, layer in enumerate(self.net.layers)
            if index not in self.halves and index not in self.sources and self._is_gone(index, layer)
        ]
        if gone:
            self.notes.append(f"left out, as they serve training only: {', '.join(gone)}")

    def _is_gone(self, index: int, layer: Layer) -> bool:
        values = [BlobValue(index, place) for place, _ in enumerate(layer.tops)] or self.flow.reads[index]
        return index in self.dropped or self.needed.isdisjoint(values)


def _as_inputs(net: Net, layer: Layer, tops: Sequence[str], given: GivenExtents) -> list[Layer]:
    """Input layers for some of a data layer's tops."""
    made = []
    for top in tops:
        name = layer.name if len(tops) == 1 else top
        shape = _shape(net, layer, top, given)
        made.append(build_layer(Input.of(name, top, shape, layer.definition.where)))
    return made


def _shape(net: Net, layer: Layer, top: str, given: GivenExtents) -> Shape | None:
    own = _own_extents(net, layer, top)
    wanted: Sequence[int | str | None] = given.get(top, own or ())
    told = own if own and len(own) == len(wanted) else (None,) * len(wanted)
    return known(tuple(a if isinstance(a, int) else b for a, b in zip(wanted, told, strict=True)))


def _own_extents(net: Net, layer: Layer, top: str) -> PartialShape | None:
    """What the layer's parameters, and the weights that it feeds, tell of a top."""
    place = layer.tops.index(top)
    extents = layer.extents[place] if place < len(layer.extents) else None
    if extents and len(extents) == 4 and extents[1] is None:
        return (extents[0], channels_of(net, top), *extents[2:])
    return extents


def channels_of(net: Net, blob: str) -> int | None:
    """The channels of a blob, from the filters of a layer that reads it."""
    for layer in net.layers:
        if blob in layer.bottoms and layer.filters and layer.input_channels is not None:
            return layer.input_channels
    return None


def _input_note(layer: Layer, made: Layer) -> str:
    shape = made.input_shapes[0]
    extent = f" of {times(shape)}" if shape is not None else ""
    return f"{layer.label} became the input '{made.tops[0]}'{extent}"
