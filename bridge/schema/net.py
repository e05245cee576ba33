"""A net of typed layers, wired by blob names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.errors import ModelError, NotFoundError, nearest, printable
from bridge.schema.blob import MOST, Blob, Shape, times, too_large
from bridge.schema.layer import Layer
from bridge.schema.message import Message
from bridge.show.table import table_text


@dataclass(frozen=True, eq=False, repr=False)
class Net:
    """A net: layers in order, wired by blob names.

    Attributes:
        name: The net's name.
        layers: In order of execution.
        definition: Fields of the net itself.
        phase: ``TEST`` or ``TRAIN``: which layers the net was assembled for.
        sources: The files it came from.
        reader: The reader that delivered the blobs.
        notes: Remarks for the user, one line each.
        shared: The stored copies of each parameter that several layers share.
    """

    name: str
    layers: tuple[Layer, ...]
    definition: Message = field(default_factory=Message)
    phase: str = "TEST"
    sources: tuple[str, ...] = ()
    reader: str = ""
    notes: tuple[str, ...] = ()
    shared: Mapping[str, tuple[Blob, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        values = sum(blob.size for blob in distinct(self.layers))
        return printable(f"<Net '{self.name}': {len(self.layers)} layers, {values:,} values>")

    def __str__(self) -> str:
        """A table of the layers and their blobs."""
        columns, *rows = layer_rows(self.layers)
        return f"{table_text(columns, rows)}\n{self!r}"

    def __getitem__(self, name: str) -> Layer:
        """The first layer of that name.

        Raises:
            NotFoundError: No layer has that name; the hint has the nearest ones.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise NotFoundError(f"no layer '{name}'", where=self.where, hint=nearest(name, self.layer_names))

    def __contains__(self, name: object) -> bool:
        return name in self.layer_names

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def layer_names(self) -> list[str]:
        """In the order of ``layers``."""
        return [layer.name for layer in self.layers]

    @property
    def where(self) -> str:
        """The name by which messages call the net."""
        return self.sources[-1] if self.sources else self.name or "net"

    @property
    def inputs(self) -> dict[str, Shape | None]:
        """The input blobs with their shapes; ``None`` where the file does not tell.

        A blob that is used and never written is an input too.
        """
        found: dict[str, Shape | None] = {}
        written: set[str] = set()
        for layer in self.layers:
            shapes = getattr(layer, "input_shapes", None)
            if shapes is not None:
                missing = (None,) * (len(layer.tops) - len(shapes))
                found.update(zip(layer.tops, (*shapes, *missing), strict=False))
            for bottom in layer.bottoms:
                if bottom not in written:
                    found.setdefault(bottom, None)
            written.update(layer.tops)
        return found

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs whose last value no layer reads, in order of writing."""
        unread: dict[str, None] = {}
        for layer in self.layers:
            for bottom in layer.bottoms:
                unread.pop(bottom, None)
            for top in layer.tops:
                unread.pop(top, None)
                unread[top] = None
        return tuple(unread)

    def replace(self, **changes: Any) -> Net:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def with_input_shapes(self, shapes: Mapping[str, Shape]) -> Net:
        """The net with other shapes for some of its inputs, in its Input layers and their definitions."""
        return self.replace(layers=tuple(_with_shapes(layer, shapes) for layer in self.layers))

    def to_message(self) -> Message:
        """The net's definition as one ``NetParameter`` (V2) without blobs."""
        message = self.definition.copy()
        if self.name and "name" not in message:
            message = Message(message.where, name=self.name)
            message.merge(self.definition)
        for layer in self.layers:
            message.add("layer", layer.definition)
        return message

    def infer(self, inputs: Mapping[str, Shape] | None = None) -> list[tuple[Shape, ...]]:
        """The shape of every top of every layer.

        Args:
            inputs: Shape of each input blob; those not given have the file's.

        Returns:
            One tuple of shapes per layer, in the order of ``layers``.

        Raises:
            ModelError: An input has no shape, or a layer cannot take what it is fed.
        """
        given = self._given_shapes(inputs or {})
        declared = {top for layer in self.layers if hasattr(layer, "input_shapes") for top in layer.tops}
        known = {name: shape for name, shape in given.items() if name not in declared}
        written: set[str] = set()
        result = []
        for layer in self.layers:
            source = given if hasattr(layer, "input_shapes") else known
            for blob in layer.tops if source is given else layer.bottoms:
                if blob not in source:
                    raise self._unknown(blob, layer, early=blob in declared & given.keys())
                if source is given and blob in written:
                    raise ModelError(f"declares blob '{blob}', which an earlier layer writes", where=self._at(layer))
            if source is given:
                tops = tuple(given[top] for top in layer.tops)
            else:
                written.update(layer.tops)
                tops = tuple(layer.checked_infer(*(known[bottom] for bottom in layer.bottoms)))
            known.update(zip(layer.tops, tops, strict=False))
            result.append(tops)
        return result

    def _given_shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the input blobs that are known."""
        shapes = {name: inputs.get(name, shape) for name, shape in self.inputs.items()}
        for name, shape in shapes.items():
            if shape is not None and too_large(shape):
                raise ModelError(f"input '{name}' would be {times(shape)}", where=self.where, hint=MOST)
        return {name: tuple(shape) for name, shape in shapes.items() if shape is not None}

    def _unknown(self, blob: str, layer: Layer, early: bool) -> ModelError:
        if early:
            return ModelError(f"reads blob '{blob}', which only a later layer declares", where=self._at(layer))
        hint = f"give it with --input {blob}=1,3,224,224"
        return ModelError(f"the shape of blob '{blob}' is not known", where=self._at(layer), hint=hint)

    def _at(self, layer: Layer) -> str:
        return f"{self.where}: {layer.label}"


def _with_shapes(layer: Layer, shapes: Mapping[str, Shape]) -> Layer:
    """An Input with other shapes for some of its tops; any other layer as it is."""
    own: Sequence[Shape] | None = getattr(layer, "input_shapes", None)
    if own is None or not shapes.keys() & set(layer.tops):
        return layer
    known = dict(zip(layer.tops, own, strict=False))
    new = tuple(shapes.get(top, known.get(top, ())) for top in layer.tops)
    definition = layer.definition.copy()
    definition.set("input_param", Message(shape=[Message(dim=list(shape)) for shape in new]))
    changes: dict[str, Any] = {"definition": definition, "input_shapes": new}
    return dataclasses.replace(layer, **changes)


def layer_rows(layers: Iterable[Any]) -> list[list[str]]:
    """The columns' names, then a row for each blob of each layer, and for each layer that has none."""
    rows = [["layer", "type", "group", "blob", "shape", "dtype"]]
    for layer in layers:
        head = [layer.name, layer.type, str(layer.group) if layer.group > 1 else ""]
        for role, blob in layer.blobs.entries() or [("", None)]:
            rows.append([*head, role, *((times(blob.shape), str(blob.dtype)) if blob else ("", ""))])
            head = [""] * len(head)
    grouped = any(row[2] for row in rows[1:])
    return rows if grouped else [[*row[:2], *row[3:]] for row in rows]


def distinct(layers: Iterable[Any]) -> list[Blob]:
    """Every blob once, however many layers share it."""
    return list({id(blob.origin): blob for layer in layers for _, blob in layer.blobs.entries()}.values())
