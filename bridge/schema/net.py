"""A net of typed layers, wired by blob names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.errors import NotFoundError, UsageError, nearest, printable
from bridge.schema.blob import Blob, Shape, times
from bridge.schema.flow import Flow
from bridge.schema.layer import Layer
from bridge.schema.message import Message
from bridge.show.table import table_text

if TYPE_CHECKING:
    from bridge.schema.diff import NetDiff

_N = TypeVar("_N", bound="Net")


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
        stages: Stages that layers of the prototxt are for, where the net was assembled for none of them.
        selected: The outputs that the user chose, see :meth:`with_outputs`; empty for the net's own.
        allow_unknown_fields: Whether the user lets fields pass that nothing reads and that may change a result.
    """

    name: str
    layers: tuple[Layer, ...]
    definition: Message = field(default_factory=Message)
    phase: str = "TEST"
    sources: tuple[str, ...] = ()
    reader: str = ""
    notes: tuple[str, ...] = ()
    shared: Mapping[str, tuple[Blob, ...]] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()
    allow_unknown_fields: bool = False

    def __repr__(self) -> str:
        values = sum(blob.size for blob in distinct(self.layers))
        return printable(f"<Net '{self.name}': {len(self.layers)} layers, {values:,} values>")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bridge.schema.notebook import net_fragment

        return net_fragment(self)

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

    @functools.cached_property
    def flow(self) -> Flow:
        """Who writes and who reads each value; made when it is first asked for, then kept."""
        return Flow(self.layers, self.where, self.stages, self.selected)

    @property
    def inputs(self) -> dict[str, Shape | None]:
        """The input blobs with their shapes; ``None`` where the file does not tell.

        A blob that is used and never written is an input too.
        """
        return dict(self.flow.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs that :meth:`with_outputs` chose, or else those whose last value no layer reads."""
        return self.flow.outputs

    def replace(self: _N, **changes: Any) -> _N:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def with_input_shapes(self, shapes: Mapping[str, Shape]) -> Net:
        """The net with other shapes for some of its inputs, in its Input layers and their definitions."""
        return self.replace(layers=tuple(layer.with_input_shapes(shapes) for layer in self.layers))

    def with_outputs(self: _N, *names: str) -> _N:
        """The part of the net that computes some of its blobs.

        ``net.with_outputs("fc7", "prob")`` has these two outputs, and none of the layers that neither needs.

        Args:
            names: Blobs. Where layers work in place, the last value of that name is meant.

        Raises:
            NotFoundError: No layer writes a blob of that name; the hint has the nearest ones.
            UsageError: No name is given, or the blob is an input of the net.
        """
        written = [top for layer in self.layers for top in layer.tops]
        for name in names:
            if name not in written and name not in self.flow.inputs:
                raise NotFoundError(f"no blob '{name}'", where=self.where, hint=nearest(name, written))
            value = self.flow.last[name]
            if value.layer < 0 or self.layers[value.layer].is_input:
                raise UsageError(f"blob '{name}' is an input: no layer computes it", where=self.where)
        if not names:
            raise UsageError("no outputs are named", where=self.where, hint="name one or more blobs of the net")
        wanted = tuple(dict.fromkeys(names))
        needed = {value.layer for value in self.flow.ancestry(self.flow.last[name] for name in wanted)}
        layers = tuple(layer for index, layer in enumerate(self.layers) if index in needed)
        return self.replace(layers=layers, selected=wanted)

    def with_blobs(self: _N, layer: str, **arrays: Any) -> _N:
        """The net with other values for a layer's blobs, such as those that a program sets by hand.

        ``net.with_blobs("class8_ab", weight=points, bias=numpy.zeros(2))``. Layers that share the parameter get the
        values, too.

        Args:
            layer: The layer's name.
            arrays: Values by role. Each has the blob's shape; what is not float is converted to float32. A layer that
                has no blobs yet needs all of its roles.

        Raises:
            NotFoundError: There is no such layer, or it has no blob of that role.
            ModelError: A blob has another shape than the layer needs, or one is missing.
            UsageError: The layer has no blobs that could be set.
        """
        from bridge.schema.setting import set_blobs

        return set_blobs(self, self[layer], arrays)

    def with_head(self: _N, layer: str, outputs: int, name: str = "", *, seed: int | None = None) -> _N:
        """The net with a new head: a layer gets other outputs, and new blobs by its fillers.

        ``net.with_head("fc8", 10)`` has ten classes. A filler that the file does not name is xavier.

        Args:
            layer: The layer's name.
            outputs: The number of outputs.
            name: A new name for it, so that Caffe does not fill it from the old weights.
            seed: For the fillers; without it each call draws other values.

        Raises:
            NotFoundError: There is no such layer.
            UsageError: It has no number of outputs, or another layer has the new name.
            ModelError: A layer behind it cannot take so many, or the shapes of the net's inputs are not known.
        """
        old = self[layer]
        if name and name != layer and name in self:
            raise UsageError(f"the net has a layer '{name}' already", where=self.where)
        bare = old.resized(outputs)
        made = self.with_layer(bare, seed=seed)
        made.infer()
        named = made[layer].changed(name=name) if name else made[layer]
        return made.replace(layers=tuple(named if other.name == layer else other for other in made.layers))

    def with_layer(self: _N, layer: Layer, *, seed: int | None = None) -> _N:
        """The net with a layer in the place of the one of its name, or behind the layers that write its bottoms.

        ``net.with_layer(net["conv1"].changed(stride=2))`` changes a layer. One that needs blobs and has none gets
        them from its fillers.

        Args:
            layer: The layer, such as one that :meth:`bridge.Layer.changed` made.
            seed: For the fillers.

        Raises:
            ModelError: The layer cannot take its bottoms, or the shapes that new blobs depend on are not known.
        """
        from bridge.schema.setting import set_layer

        return set_layer(self, layer, seed)

    def diff(self, other: Net) -> NetDiff:
        """How far another net's blobs are from this one's, layer by layer.

        ``print(net.diff(tuned))`` shows what fine-tuning moved. The result is false where nothing differs.

        Args:
            other: The net to compare with.
        """
        from bridge.schema.diff import diff

        return diff(self, other)

    def __copy__(self: _N) -> _N:
        return self  # nothing about it can change

    def __deepcopy__(self: _N, memo: object) -> _N:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the attributes, with the blobs' values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

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
        return self.flow.infer(inputs)


@dataclass(frozen=True, eq=False, repr=False)
class ServedNet(Net):
    """A net as it is deployed: inputs are fed from outside, and no layer serves training only.

    :func:`bridge.caffe_files.inference.inference_net` makes it; engines and the ONNX exporter take no other.
    """


def as_served(net: Net) -> ServedNet:
    """The net under the type that says it is ready to be served."""
    return ServedNet(**{field.name: getattr(net, field.name) for field in dataclasses.fields(net)})


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
