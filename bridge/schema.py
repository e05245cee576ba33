"""The schema: one framework-neutral net of typed layers with named blobs.

Readers produce a :class:`RawNet` (what a file holds, in Caffe's order, nothing
interpreted); :func:`bridge.assemble.assemble` turns it into a :class:`Net`;
everything else only consumes the :class:`Net`. No module here knows a file format
or a framework.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bridge.blob import MOST, Blob, Blobs, Location, Shape, count, times, too_large
from bridge.errors import ModelError, NotFoundError, UnsupportedLayerError, nearest, printable
from bridge.message import Message
from bridge.tables import aligned, distinct, layer_rows

__all__ = [
    "Blob", "Blobs", "Layer", "Location", "Net", "Opaque", "ParamSpec", "RawLayer", "RawNet", "Shape", "count", "times",
]  # fmt: skip


@dataclass(frozen=True)
class ParamSpec:
    """What the solver may do with one blob (caffe.proto ``ParamSpec``).

    Attributes:
        name: Blobs of equal non-empty name are one shared parameter.
        lr_mult: Factor on the learning rate.
        decay_mult: Factor on the weight decay.
        share_mode: ``STRICT`` (equal shapes) or ``PERMISSIVE`` (equal counts).
    """

    name: str = ""
    lr_mult: float = 1.0
    decay_mult: float = 1.0
    share_mode: str = "STRICT"


@dataclass(frozen=True)
class RawLayer:
    """A layer as a file holds it, after the upgrade to Caffe's current (V2) form.

    Attributes:
        name: The layer's name.
        type: Caffe's type string, such as ``Convolution``.
        definition: The layer's ``LayerParameter`` without its blobs.
        blobs: The stored arrays, in Caffe's order.
        uncovered: Why the reader could not deliver this layer's blobs; empty if it did.
        reworked: Why the blobs are not the source's own, though the layer computes the same; empty if they are.
    """

    name: str
    type: str
    definition: Message
    blobs: tuple[Blob, ...] = ()
    uncovered: str = ""
    reworked: str = ""


@dataclass(frozen=True)
class RawNet:
    """What a reader delivers.

    Attributes:
        name: The net's name.
        layers: In the order of the file.
        definition: Fields of the net itself (``name``, ``state``, ...), without layers.
        source: The file.
        reader: Name of the reader.
        notes: Remarks for the user, one line each.
        complete: Whether ``layers`` hold whole definitions (type, wiring, parameters),
            or only names and blobs.
        partial: Whether layers of the file that the net has not are left out.
    """

    name: str
    layers: tuple[RawLayer, ...]
    definition: Message = field(default_factory=Message)
    source: str = ""
    reader: str = ""
    notes: tuple[str, ...] = ()
    complete: bool = True
    partial: bool = False


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Layer:
    """A layer of a net. Its type's own parameters are attributes of the subclass.

    Attributes:
        name: The layer's name.
        type: Caffe's type string.
        bottoms: Names of the input blobs.
        tops: Names of the output blobs; a name that is also a bottom is written in place.
        definition: The whole ``LayerParameter`` (V2) without blobs; unknown fields kept.
        blobs: Role -> array, in Caffe's order.
        params: One :class:`ParamSpec` per blob that the definition has one for.
        uncovered: Why the reader could not deliver this layer's blobs; empty if it did.
    """

    name: str
    type: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    definition: Message = field(default_factory=Message)
    blobs: Blobs = field(default_factory=Blobs)
    params: tuple[ParamSpec, ...] = ()
    uncovered: str = ""

    training_only: ClassVar[bool] = False
    """True for losses, accuracies and data sources: they have no part in inference."""

    @property
    def label(self) -> str:
        """``layer 'conv2' (Convolution)``, for messages."""
        return f"layer '{self.name}' ({self.type})"

    @property
    def group(self) -> int:
        """Groups of the layer's weight; 1 where the type knows none."""
        return 1

    def __getattr__(self, role: str) -> np.ndarray:
        """A blob by its role: ``layer.weight``, ``layer.bias``."""
        if not role.startswith("_"):
            blobs: Blobs = self.__dict__.get("blobs", Blobs())
            if role in blobs:
                return blobs[role]
        raise AttributeError(f"layer '{self.__dict__.get('name')}' has no attribute or blob '{role}'")

    def __repr__(self) -> str:
        blobs = ", ".join(f"{role} {times(blob.shape)}" for role, blob in self.blobs.entries())
        wiring = f"{', '.join(self.bottoms)} -> {', '.join(self.tops)}".strip()
        return printable(f"<{self.type} '{self.name}': {wiring}{'; ' * bool(blobs)}{blobs}>")

    def param(self, index: int) -> ParamSpec:
        """The solver's specification of blob ``index``; the default one where none is given."""
        return self.params[index] if index < len(self.params) else ParamSpec()

    def initializer(self, role: str) -> Callable[[Any], None]:
        """An initializer for Chainer's ``initialW=`` or ``initial_bias=``.

        It fills an array of the blob's own shape, of a grouped weight's dense form, or
        of a shape that differs by axes of extent one; anything else is a ModelError.
        """
        from bridge.weights import Initializer

        return Initializer(self, role)

    # -- what a layer type defines (see bridge.layers) --------------------------------

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        """The shape that each blob must have for inputs of the given shapes."""
        raise UnsupportedLayerError(self.reason(), where=self.label)

    def check_blobs(self, *bottoms: Shape) -> None:
        """Compare the stored shapes with those that inputs of these shapes demand.

        Raises:
            ModelError: They differ; names the blob and both shapes.
        """
        for role, expected in self.blob_shapes(*bottoms).items():
            if too_large(expected):
                raise ModelError(f"blob '{role}' would be {times(expected)}", where=self.label, hint=MOST)
            stored = self.blobs.blob(role).shape if self.blobs else expected
            if stored != expected:
                raise ModelError(
                    f"blob '{role}' has {count(stored)} values ({times(stored)}), "
                    f"expected {count(expected)} = {times(expected)}",
                    where=self.label,
                )

    def checked_infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        """:meth:`infer`, with the blobs and the extents checked as well."""
        tops = self.infer(*bottoms)
        self.check_blobs(*bottoms)
        for name, shape in zip(self.tops, tops, strict=False):
            if any(extent < 0 for extent in shape) or too_large(shape):
                raise ModelError(
                    f"top '{name}' would be {times(shape)} for inputs "
                    + ", ".join(times(bottom) for bottom in bottoms),
                    where=self.label,
                    hint=MOST if too_large(shape) else "",
                )
        return tops

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        """Shapes of the tops for bottoms of the given shapes."""
        raise UnsupportedLayerError(self.reason(), where=self.label)

    def to_onnx(self, g: Any, *x: str) -> str | Sequence[str]:
        """Emit ONNX nodes with the builder ``g``; returns the value name of each top."""
        raise UnsupportedLayerError(self.reason(), where=self.label)

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        """The forward computation on Chainer variables; one result per top."""
        raise UnsupportedLayerError(self.reason(), where=self.label)

    def reason(self) -> str:
        """Why the layer cannot be run or exported."""
        return "this layer type has no such lowering"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Opaque(Layer):
    """A layer that cannot be interpreted: its blobs read, list and convert all the same.

    Attributes:
        problem: Why: an unknown type, or parameters that make no sense.
    """

    problem: str = "unknown layer type"

    def reason(self) -> str:
        """The problem."""
        return self.problem


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
        rows = [[printable(cell) for cell in row] for row in layer_rows(self.layers)]
        return f"{aligned(rows)}\n{self!r}"

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
