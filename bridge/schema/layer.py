"""A typed layer of a net, and the layer that cannot be interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bridge.errors import ModelError, UnsupportedLayerError, printable
from bridge.schema.blob import MOST, Blobs, Shape, count, times, too_large
from bridge.schema.message import Message


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
        from bridge.schema.initializer import Initializer

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
