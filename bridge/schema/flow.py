"""Who writes each value of a net, who reads it, and which shape it has.

A layer that works in place writes a new value under an old name. So a value is not a name but a
pair: (index of the layer that writes it, place among that layer's tops). A blob that is read and
that no layer writes has the index -1 and a number of its own.

``net.flow`` is made once for each net; everything that walks a net asks it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bridge.errors import BridgeError, ModelError, nearest
from bridge.schema.blob import MOST, Shape, times, too_large
from bridge.schema.layer import Layer

_SIDES = (224, 227, 299, 28, 32, 64, 96, 112, 128, 256)
"""Sides of images that are usual, for a hint."""


class BlobValue(NamedTuple):
    """A value of a net.

    Attributes:
        layer: Index of the layer that writes it; -1 for a blob that no layer writes.
        top: Place among the layer's tops; for the index -1 a running number.
    """

    layer: int
    top: int


class Stretch(NamedTuple):
    """One layer's tops are longer than its ``infer`` says, as values can make them.

    Attributes:
        layer: Index of the layer.
        axis: The axis of its tops.
        more: By how much.
    """

    layer: int
    axis: int
    more: int

    def applied(self, shape: Shape) -> Shape:
        """The longer shape."""
        return (*shape[: self.axis], shape[self.axis] + self.more, *shape[self.axis + 1 :])


class Flow:
    """The values of a net.

    Args:
        layers: The net's layers, in order.
        where: The net, for messages.
        stages: Stages that the net may have been meant for, for messages.
        selected: The blobs that the user wants; by default those that no layer reads.

    Attributes:
        reads: For each layer the value of each of its bottoms.
        last: Blob -> its last value; blobs that are only read are in it, too.
        inputs: The input blobs with their shapes, ``None`` where the file does not give one: what the input
            layers declare, and every blob that is read before a layer writes it.
        outputs: The selected blobs; without a selection the blobs whose last value no layer reads, in order of
            writing.
    """

    def __init__(
        self, layers: Sequence[Layer], where: str = "net", stages: Sequence[str] = (), selected: Sequence[str] = ()
    ) -> None:
        self.layers, self.where, self.stages = tuple(layers), where, tuple(stages)
        self.selected = tuple(selected)
        self.reads: list[tuple[BlobValue, ...]] = []
        self.last: dict[str, BlobValue] = {}
        self.inputs: dict[str, Shape | None] = {}
        self._undeclared: list[str] = []
        self._readers: dict[BlobValue, list[int]] = {}
        for index, layer in enumerate(self.layers):
            self._add(index, layer)
        self.outputs = tuple(self.name(value) for value in self._ends())

    def _add(self, index: int, layer: Layer) -> None:
        if layer.is_input:
            shapes = layer.input_shapes
            missing = (None,) * (len(layer.tops) - len(shapes))
            self.inputs.update(zip(layer.tops, (*shapes, *missing), strict=False))
        values = tuple(self._value(bottom) for bottom in layer.bottoms)
        self.reads.append(values)
        for value in dict.fromkeys(values):
            self._readers.setdefault(value, []).append(index)
        for place, top in enumerate(layer.tops):
            self.last.pop(top, None)  # the order is that of the last writing
            self.last[top] = BlobValue(index, place)

    def _value(self, name: str) -> BlobValue:
        if name not in self.last:
            self.inputs.setdefault(name, None)
            self.last[name] = BlobValue(-1, len(self._undeclared))
            self._undeclared.append(name)
        return self.last[name]

    def _ends(self) -> list[BlobValue]:
        if self.selected:
            return [self.last[name] for name in self.selected if name in self.last]
        return [value for value in self.last.values() if value.layer >= 0 and value not in self._readers]

    def name(self, value: BlobValue) -> str:
        """The blob that holds the value."""
        return self.layers[value.layer].tops[value.top] if value.layer >= 0 else self._undeclared[value.top]

    def final(self, value: BlobValue) -> bool:
        """Whether no later layer writes another value under the same name."""
        return self.last.get(self.name(value)) == value

    def readers(self, value: BlobValue) -> list[int]:
        """Indices of the layers that read a value, itself or through layers that copy it, such as Split."""
        found = []
        for index in self._readers.get(value, ()):
            if self._splits(index):
                tops = range(len(self.layers[index].tops))
                found += [reader for top in tops for reader in self.readers(BlobValue(index, top))]
            else:
                found.append(index)
        return found

    def behind_splits(self, value: BlobValue) -> BlobValue:
        """The value that a Split's top is another name of; any other value itself."""
        while value.layer >= 0 and self._splits(value.layer):
            value = self.reads[value.layer][0]
        return value

    def _splits(self, index: int) -> bool:
        return self.layers[index].copies and self.layers[index].shares_memory

    def ends(self) -> set[BlobValue]:
        """The values of :attr:`outputs`."""
        return set(self._ends())

    def outputs_without(self, layers: Iterable[int]) -> list[str]:
        """The blobs that the net can still put out when some of its layers cannot be computed.

        Args:
            layers: Indices of those layers.

        Returns:
            In order of writing, the last computed blobs on every path; no inputs. Where one of the layers works in
            place, the value before it has no name of its own, and is not among them.
        """
        lost = set(layers)
        for index, values in enumerate(self.reads):
            if any(value.layer in lost for value in values):
                lost.add(index)
        kept = [index for index, layer in enumerate(self.layers) if index not in lost and not layer.is_input]
        read = {value for index in kept for value in self.reads[index]}
        tops = [BlobValue(index, place) for index in kept for place, _ in enumerate(self.layers[index].tops)]
        return [
            self.name(value) for value in tops if self.final(value) and value not in read and self._is_computed(value)
        ]

    def _is_computed(self, value: BlobValue) -> bool:
        """Whether more than copying lies between what is fed and the value."""
        origin = self.behind_splits(value)
        return origin.layer >= 0 and bool(self.reads[origin.layer])

    def ancestry(self, values: Iterable[BlobValue]) -> set[BlobValue]:
        """The values, and all that they are computed from."""
        needed: set[BlobValue] = set()
        left = list(values)
        while left:
            value = left.pop()
            if value not in needed:
                needed.add(value)
                left += self.reads[value.layer] if value.layer >= 0 else ()
        return needed

    def origins(self, values: Iterable[BlobValue]) -> set[BlobValue]:
        """Of the :meth:`ancestry` those that are computed from nothing, such as inputs."""
        return {value for value in self.ancestry(values) if value.layer < 0 or not self.reads[value.layer]}

    def learned(self) -> list[bool]:
        """For each layer, whether its tops depend on parameters: its own, or those of a layer before it."""
        learned: list[bool] = []
        for layer, values in zip(self.layers, self.reads, strict=True):
            own = bool(layer.blobs) or bool(layer.roles(0))
            learned.append(own or any(value.layer >= 0 and learned[value.layer] for value in values))
        return learned

    def fed(self, value: BlobValue) -> BlobValue:
        """The value, with input layers taken away: (-1, n) for the n-th of :attr:`inputs`."""
        if value.layer >= 0 and not self.layers[value.layer].is_input:
            return value
        return BlobValue(-1, self._input_places[self.name(value)])

    @functools.cached_property
    def _input_places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.inputs)}

    def fed_reads(self) -> list[tuple[BlobValue, ...]]:
        """:attr:`reads` by :meth:`fed` values, for a net whose inputs come from outside."""
        return [tuple(map(self.fed, values)) for values in self.reads]

    # -- shapes -----------------------------------------------------------------------------------

    def infer(
        self, inputs: Mapping[str, Shape] | None = None, *, stretch: Stretch | None = None
    ) -> list[tuple[Shape, ...]]:
        """The shapes of every layer's tops.

        Args:
            inputs: Shape of each input blob; those not given have the file's.
            stretch: A layer whose tops are taken to be longer along an axis than ``infer`` says.

        Raises:
            ModelError: An input has no shape, or a layer cannot take what it is fed.
        """
        given = self._given_shapes(inputs or {})
        declared = {top for layer in self.layers if layer.is_input for top in layer.tops}
        known = {name: shape for name, shape in given.items() if name not in declared}
        written: set[str] = set()
        result = []
        for index, layer in enumerate(self.layers):
            source = given if layer.is_input else known
            for blob in layer.tops if layer.is_input else layer.bottoms:
                if blob not in source:
                    if blob in declared & given.keys():
                        raise layer.fail(f"reads blob '{blob}', which only a later layer declares").at(self.where)
                    raise self.shapeless(blob)
                if layer.is_input and blob in written:
                    raise layer.fail(f"declares blob '{blob}', which an earlier layer writes").at(self.where)
            if layer.is_input:
                tops = tuple(given[top] for top in layer.tops)
            else:
                written.update(layer.tops)
                tops = tuple(layer.checked_infer(*(known[bottom] for bottom in layer.bottoms)))
                self._check_in_place(layer, tops, known)
                if stretch is not None and stretch.layer == index:
                    tops = tuple(map(stretch.applied, tops))
            known.update(zip(layer.tops, tops, strict=False))
            result.append(tops)
        return result

    def _check_in_place(self, layer: Layer, tops: Sequence[Shape], known: Mapping[str, Shape]) -> None:
        """Refuse a layer that would change the shape of the blob that it works in place on; Caffe cannot, either."""
        for bottom, top, shape in zip(layer.bottoms, layer.tops, tops, strict=False):
            if bottom == top and known[bottom] != shape:
                problem = f"works in place on blob '{top}' of {times(known[bottom])}, and would make it {times(shape)}"
                raise layer.fail(problem, expected="a top of another name").at(self.where)

    def final_shapes(self, inputs: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
        """The shape of the last value of every blob that a layer writes; errors as of :meth:`infer`."""
        shapes: dict[str, Shape] = {}
        for layer, tops in zip(self.layers, self.infer(inputs), strict=True):
            shapes.update(zip(layer.tops, tops, strict=False))
        return shapes

    def _given_shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the input blobs that are known."""
        shapes = {name: inputs.get(name, shape) for name, shape in self.inputs.items()}
        for name, shape in shapes.items():
            if shape is not None and too_large(shape):
                raise ModelError(f"input '{name}' would be {times(shape)}", where=self.where, hint=MOST)
        return {name: tuple(shape) for name, shape in shapes.items() if shape is not None}

    def shapeless(self, blob: str) -> ModelError:
        """The error about an input whose shape is not known, or that no input declares and may be a slip of the pen."""
        reader = next((layer for layer in self.layers if blob in layer.bottoms), None)
        how = f"--input {blob}={','.join(map(str, self._likely(blob, reader)))}"
        declared = [top for layer in self.layers if layer.is_input for top in layer.tops]
        stage = f"the prototxt has layers for --stage {' or '.join(self.stages)}; " if self.stages else ""
        problem, hint = f"the shape of input '{blob}' is not known", f"{stage}give it with {how}"
        if declared and blob not in declared:
            problem = f"reads blob '{blob}', which no layer writes and no input declares"
            near = nearest(blob, [top for layer in self.layers for top in layer.tops])
            hint = f"{stage}{near}{'; ' * bool(near)}{how} would make it an input"
        return ModelError(problem, where=self.where, subject=reader.label if reader else "", hint=hint)

    def _likely(self, blob: str, reader: Layer | None) -> tuple[int | str, ...]:
        """An input's shape for a hint, which fits the weights: the channels by its reader, the sides by trying."""
        weight = reader.blobs.blob("weight").shape if reader is not None and "weight" in reader.blobs else ()
        channels = weight[1] * reader.group if reader is not None and len(weight) == 4 else 3
        others = [name for name, shape in self.inputs.items() if shape is None and name != blob]
        tried = () if others else (*_SIDES, *range(256, 0, -1))
        side = next((n for n in tried if self._fits({blob: (1, channels, n, n)})), _SIDES[0] if others else None)
        return (1, channels, side or "HEIGHT", side or "WIDTH")

    def _fits(self, inputs: Mapping[str, Shape]) -> bool:
        try:
            self.infer(inputs)
        except BridgeError:
            return False
        return True
