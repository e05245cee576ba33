"""A typed layer of a net, and the layer that cannot be interpreted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bridge.errors import ModelError, UnsupportedLayerError, UsageError, printable
from bridge.schema.blob import MOST, Blobs, Shape, count, times, too_large
from bridge.schema.hooks import LayerHooks
from bridge.schema.message import Message

if TYPE_CHECKING:
    import numpy as np

    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_L = TypeVar("_L", bound="Layer")


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


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Layer(LayerHooks):
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

    ``definition`` and the other fields always agree: :meth:`changed` changes both.
    """

    name: str
    type: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    definition: Message = field(default_factory=Message)
    blobs: Blobs = field(default_factory=Blobs)
    params: tuple[ParamSpec, ...] = ()
    uncovered: str = ""

    @property
    def label(self) -> str:
        """``layer 'conv2' (Convolution)``, for messages."""
        return f"layer '{self.name}' ({self.type})"

    @property
    def group(self) -> int:
        """Groups of the layer's weight; 1 for types without groups."""
        return 1

    if TYPE_CHECKING:  # what most types have; every role of a blob is an attribute, by __getattr__
        weight: ClassVar[np.ndarray]
        bias: ClassVar[np.ndarray]
    else:

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

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bridge.schema.notebook import layer_fragment

        return layer_fragment(self)

    def param(self, index: int) -> ParamSpec:
        """The solver's specification of blob ``index``; the default one where none is given."""
        return self.params[index] if index < len(self.params) else ParamSpec()

    def initializer(self, role: str) -> Callable[[Any], None]:
        """An initializer for Chainer's ``initialW=`` or ``initial_bias=``.

        It fills an array of the blob's own shape, of a grouped weight's dense form, or
        of a shape that differs by axes of extent one; anything else is a ModelError.
        """
        from bridge.schema.initializer import Initializer

        return Initializer(self, role)

    def fail(self, problem: str, **fields: str) -> ModelError:
        """A ModelError about this layer.

        Args:
            problem: What is wrong, one line.
            fields: Other fields of :class:`~bridge.errors.BridgeError`, such as ``expected`` or ``rule``.
        """
        return ModelError(problem, subject=self.label, **fields)

    # -- changing a layer -----------------------------------------------------------------

    def changed(
        self: _L,
        *,
        name: str | None = None,
        bottoms: Sequence[str] | None = None,
        tops: Sequence[str] | None = None,
        blobs: Blobs | None = None,
        uncovered: str | None = None,
        **parameters: Any,
    ) -> _L:
        """The layer with some of it changed; the definition changes with it.

        ``layer.changed(name="head", num_output=10)`` is a layer of another name and size.

        Args:
            name: The new name; here as in the other arguments ``None`` leaves what there is.
            bottoms: Names of the input blobs.
            tops: Names of the output blobs.
            blobs: The arrays by role.
            uncovered: Why the reader could not deliver the blobs.
            parameters: Fields of the type's parameter message as caffe.proto names them; a list
                for a repeated field, ``None`` for its default.

        Raises:
            ModelError: A parameter has a value that Caffe does not allow.
            UsageError: The type has no parameter message.
        """
        fields: dict[str, Any] = {
            "name": name,
            "bottoms": None if bottoms is None else tuple(bottoms),
            "tops": None if tops is None else tuple(tops),
            "blobs": blobs,
            "uncovered": uncovered,
        }
        fields = {field: value for field, value in fields.items() if value is not None}
        written = {"name": [name], "bottom": bottoms, "top": tops}
        if parameters or name is not None or bottoms is not None or tops is not None:
            fields["definition"] = self.definition.copy()
            for field, values in written.items():
                if values is not None and values != [None]:
                    fields["definition"].set(field, *values)
        made = dataclasses.replace(self, **fields)
        return made.with_parameters(parameters) if parameters else made

    def with_parameters(self: _L, parameters: Mapping[str, Any]) -> _L:
        """The layer with other values in its parameter message; see :meth:`changed`."""
        raise UsageError("its parameters cannot be changed: the type is not known", subject=self.label)

    def resized(self: _L, outputs: int, name: str = "") -> _L:
        """The layer with another number of outputs, and perhaps another name, without blobs.

        Raises:
            UsageError: The type has no number of outputs.
        """
        if self.outputs is None:
            raise UsageError("has no num_output to change", subject=self.label)
        return self.changed(name=name or None, blobs=Blobs(), num_output=outputs)

    def filled(self: _L, *bottoms: Shape, seed: int | None = None) -> _L:
        """The layer with new blobs for inputs of the given shapes, as its fillers make them.

        Raises:
            UnsupportedLayerError: The type is not known.
            ModelError: The layer cannot take such inputs, or Caffe would not fill the blobs so.
        """
        raise UnsupportedLayerError(self.reason(), subject=self.label)

    def __copy__(self: _L) -> _L:
        return self  # nothing about it can change

    def __deepcopy__(self: _L, memo: object) -> _L:
        return self

    # -- running a layer: each type overrides these -------------------------------------------

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        """The shape that each blob must have for inputs of the given shapes."""
        raise UnsupportedLayerError(self.reason(), subject=self.label)

    def check_blobs(self, *bottoms: Shape) -> None:
        """Compare the stored shapes with those that inputs of these shapes demand.

        Raises:
            ModelError: They differ; names the blob and both shapes.
        """
        for role, expected in self.blob_shapes(*bottoms).items():
            if too_large(expected):
                raise self.fail(f"blob '{role}' would be {times(expected)}", hint=MOST, rule="size")
            stored = self.blobs.blob(role).shape if self.blobs else expected
            if stored != expected:
                same = count(stored) == count(expected)  # then it is the shape that is wrong
                raise self.fail(
                    f"blob '{role}' is {times(stored)}" if same else
                    f"blob '{role}' has {count(stored)} values ({times(stored)})",
                    expected=times(expected) if same else f"{count(expected)} = {times(expected)}",
                    rule=role,
                )  # fmt: skip

    def checked_infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        """:meth:`infer`, with the blobs and the extents checked as well."""
        tops = self.infer(*bottoms)
        if not all(isinstance(shape, tuple) for shape in tops):
            raise self.fail(f"its 'infer' gives {tops}", expected="a tuple with a shape for each top", rule="infer")
        self.check_blobs(*bottoms)
        for name, shape in zip(self.tops, tops, strict=False):
            if any(extent < 0 for extent in shape) or too_large(shape):
                raise self.fail(
                    f"top '{name}' would be {times(shape)} for inputs " + ", ".join(map(times, bottoms)),
                    hint=MOST if too_large(shape) else "",
                    rule="size",
                )
        return tops

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        """Shapes of the tops for bottoms of the given shapes."""
        raise UnsupportedLayerError(self.reason(), subject=self.label)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str | Sequence[str]:
        """Emit ONNX nodes with the builder ``g``; returns the value name of each top."""
        raise UnsupportedLayerError(self.reason(), subject=self.label)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        """The forward computation on Chainer variables; one result per top."""
        raise UnsupportedLayerError(self.reason(), subject=self.label)

    def to_numpy(self, *x: np.ndarray) -> Sequence[np.ndarray]:
        """The tops from float32 bottoms, in NumPy alone: a second implementation where Chainer has none."""
        raise UnsupportedLayerError(self.reason(), subject=self.label)

    @property
    def has_onnx(self) -> bool:
        """Whether the type can be said in ONNX: it overrides :meth:`to_onnx`, or declares inputs."""
        return self.is_input or type(self).to_onnx is not Layer.to_onnx

    @property
    def takes_tail(self) -> bool:
        """Whether what follows per channel may be computed with the layer: it ends in ``F.caffe_convolution``."""
        return False

    @property
    def takes_cut(self) -> bool:
        """The same for a cut at 0 alone: it ends in ``F.caffe_eltwise_sum``, say."""
        return self.takes_tail

    def chainer_tail(self, F: Any, link: Any) -> Any:
        """What the layer does to each channel, where it is no more than a factor, a shift and a cut at 0.

        Args:
            F: The functions, as for :meth:`to_chainer`.
            link: The layer's arrays, as for :meth:`to_chainer`.

        Returns:
            What ``F.tail`` makes of them; ``None`` where the layer does something else, as by default.
        """
        return None

    @property
    def has_chainer(self) -> bool:
        """Whether Chainer can run the type: it overrides :meth:`to_chainer`, or declares inputs."""
        return self.is_input or type(self).to_chainer is not Layer.to_chainer

    @property
    def has_numpy(self) -> bool:
        """Whether NumPy can run the type: it overrides :meth:`to_numpy`."""
        return type(self).to_numpy is not Layer.to_numpy

    def reason(self) -> str:
        """Why the layer cannot be run or exported."""
        return "this layer type has no such lowering"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Opaque(Layer):
    """A layer that cannot be interpreted: its blobs read, list and convert all the same.

    Attributes:
        problem: Why: an unknown type, or parameters that make no sense.
        kind: The name of what it is: its type, or the Python class of a layer that is written in Python.
        known: Whether the type is known, and the layer is not what it has to be.
    """

    problem: str = "unknown layer type"
    kind: str = ""
    known: bool = False

    @property
    def serves_training(self) -> bool:
        """True for a type that calls itself a loss or an accuracy, or that has a loss weight."""
        name = (self.kind or self.type).lower().removesuffix("layer").rstrip("_")
        return name.endswith(("loss", "accuracy")) or any(map(bool, self.definition.all("loss_weight")))

    def feeds(self, given: Container[str]) -> bool:
        """True for a layer that reads nothing and stores nothing: it makes its tops."""
        return not self.bottoms and not self.blobs

    def reason(self) -> str:
        """The problem."""
        return self.problem
