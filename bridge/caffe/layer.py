"""The layers of a net, as pycaffe shows them, and the base class for layers in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.caffe.blob import Blob, BlobVec, param_blob
from bridge.caffe.sources import BatchSource, Sink, surroundings
from bridge.caffe.state import draw_seed
from bridge.errors import ModelError
from bridge.layers.base import CaffeLayer
from bridge.layers.fillers import filled
from bridge.layers.loss import Loss
from bridge.schema import Shape, count
from bridge.schema.message import Message

PHASES = ("TRAIN", "TEST")


class Phase(int):
    """A phase as a layer sees it: 0 or 1, and as text ``TRAIN`` or ``TEST``, as layers of Faster R-CNN take it."""

    def __str__(self) -> str:
        return PHASES[self]


class Layer:
    """A layer of a net; the base class of layers that are written in Python.

    Such a layer has methods ``setup(bottom, top)``, ``reshape(bottom, top)``, ``forward(bottom, top)`` and
    ``backward(top, propagate_down, bottom)``, whose arguments are lists of blobs, and finds its parameters
    in ``param_str``.

    Args:
        definition: Its ``LayerParameter``.

    Attributes:
        blobs: Its parameters.
        phase: 0 in training, 1 in testing; as text ``TRAIN`` or ``TEST``.
        param_str: The text of a Python layer's ``param_str``.

    Source: layer.hpp, python_layer.hpp.
    """

    type = "Python"
    phase: int
    param_str: str
    blobs: BlobVec

    def __new__(cls, *args: Any, **keywords: Any) -> Layer:
        """A layer that has its ``blobs``, whatever its ``__init__`` does."""
        made = super().__new__(cls)
        made.blobs = BlobVec()
        return made

    def __init__(self, definition: Any = None) -> None:
        pass

    @property
    def param_str_(self) -> str:
        """What ``param_str`` was called before 2015."""
        return self.param_str

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Called once; reads the parameters and makes the layer's blobs."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Called before each forward pass; gives the tops their shapes."""

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Write the tops' data."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Write the bottoms' diff, and add to that of the layer's blobs."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")


class Node:
    """A layer in its net.

    Args:
        definition: Its ``LayerParameter``.
        bottoms, tops: Its blobs.
        phase: ``TRAIN`` or ``TEST``.

    Attributes:
        layer: What ``net.layers`` shows.
        name: The layer's name.
        loss_weights: The factor of each top in the net's loss.
        need_backward: Whether the backward pass goes through it.
        propagate: Whether each bottom gets a diff.
        param_propagate: Whether each parameter does.
    """

    layer: Layer
    runs_here = True
    """Whether it runs by itself and not in an engine."""

    def __init__(self, definition: Message, bottoms: list[Blob], tops: list[Blob], phase: str) -> None:
        self.definition, self.bottoms, self.tops, self.phase = definition, bottoms, tops, phase
        self.name = definition.text("name")
        self.need_backward = True
        self.propagate: list[bool] = [True] * len(bottoms)
        self.param_propagate: list[bool] = []
        self._shaped: tuple[tuple[Shape, ...], list[Shape]] | None = None

    @property
    def label(self) -> str:
        """``layer 'conv2' (Convolution)``, for messages."""
        return f"layer '{self.name}' ({self.definition.text('type')})"

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The factor of each top in the net's loss."""
        given = [float(weight) for weight in self.definition.all("loss_weight") if isinstance(weight, (int, float))]
        return (*given, *[0.0] * (len(self.tops) - len(given)))

    def allows_force_backward(self, bottom: int) -> bool:
        """Whether ``force_backward`` reaches a bottom; not a loss's labels. Source: ``AllowForceBackward``."""
        return True

    def setup(self) -> None:
        """Make the parameters, and give the tops their first shapes."""
        raise NotImplementedError

    def reshape(self) -> None:
        """Give the tops their shapes."""
        raise NotImplementedError

    def forward(self) -> None:
        """Write the tops' data."""
        raise NotImplementedError

    def backward(self) -> None:
        """Write the bottoms' diff."""

    def _shape_tops(self, shapes: Sequence[Shape]) -> None:
        for top, shape in zip(self.tops, shapes, strict=False):
            top.set_shape(shape)


class TypedNode(Node):
    """A layer of a known type: engines run it."""

    runs_here = False

    def __init__(
        self, typed: CaffeLayer, definition: Message, bottoms: list[Blob], tops: list[Blob], phase: str
    ) -> None:
        super().__init__(definition, bottoms, tops, phase)
        self.typed = typed
        self.roles: tuple[str, ...] = ()
        self.layer = _BuiltIn(self)

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The factor of each top in the net's loss."""
        return self.typed.loss_weights

    def allows_force_backward(self, bottom: int) -> bool:
        """Whether ``force_backward`` reaches a bottom; not a loss's labels."""
        return not isinstance(self.typed, Loss) or bottom < self.typed.predictions

    def setup(self) -> None:
        """Make the parameters, and give the tops their first shapes."""
        shapes = self._bottom_shapes()
        wanted = self.typed.blob_shapes(*shapes)
        self.roles = tuple(wanted)
        self.layer.blobs.extend(self._param(role, shape) for role, shape in wanted.items())
        self.reshape()

    def _param(self, role: str, shape: Shape) -> Blob:
        seed = draw_seed()
        return param_blob(shape, lambda: filled(self.typed, role, shape, seed=seed))

    def reshape(self) -> None:
        """Give the tops their shapes."""
        shapes = self._bottom_shapes()
        params = [blob.dims for blob in self.layer.blobs]
        if (shapes, params) != self._shaped:
            tops = self.typed.checked_infer(*shapes)
            self._check_params(shapes)
            self._shape_tops(tops)
            self._shaped = shapes, params
        elif self.typed.data_dependent:
            self._shaped = None

    def become(self, typed: CaffeLayer, blobs: Sequence[Blob]) -> None:
        """Take another form of the layer's type, with other parameters.

        Args:
            typed: The layer with blobs, whose values do not matter.
            blobs: Its parameters, in the order of the typed layer's blobs.
        """
        self.typed, self.roles = typed, tuple(typed.blobs)
        self.layer.blobs[:] = blobs
        rest = [True] * (len(blobs) - len(self.param_propagate))
        self.param_propagate = [*self.param_propagate, *rest][: len(blobs)]
        self._shaped = None

    def _check_params(self, shapes: tuple[Shape, ...]) -> None:
        wanted = self.typed.blob_shapes(*shapes)
        for (role, shape), blob in zip(wanted.items(), self.layer.blobs, strict=False):
            if shape != blob.dims and count(shape) != blob.count:
                raise ModelError(
                    f"blob '{role}' has {blob.count} values, an input of this shape needs {count(shape)}",
                    where=self.label,
                )

    def _bottom_shapes(self) -> tuple[Shape, ...]:
        return tuple(bottom.dims for bottom in self.bottoms)


class InputNode(TypedNode):
    """An Input layer: its tops have the shapes that the user gave them last."""

    runs_here = True

    def setup(self) -> None:
        """Give the tops the shapes of the definition."""
        shapes = getattr(self.typed, "input_shapes", ())
        if len(shapes) != len(self.tops):
            hint = "add an input_shape, or input_dim, for each input to the prototxt"
            raise ModelError(f"has {len(shapes)} shapes for {len(self.tops)} tops", where=self.label, hint=hint)
        self._shape_tops(shapes)

    def reshape(self) -> None:
        """Nothing: the user reshapes."""

    def forward(self) -> None:
        """Nothing: the user fills the tops."""


class SourceNode(TypedNode):
    """A data layer: its source fills the tops."""

    runs_here = True

    def __init__(self, source: BatchSource, *args: Any) -> None:
        super().__init__(*args)
        self.source = source

    def setup(self) -> None:
        """Open the source, and give the tops the shapes of its batches."""
        self.source.setup(self.typed, self.phase, surroundings())
        self.reshape()
        self._fill(self.source.first_batch())

    def reshape(self) -> None:
        """Give the tops the shapes of the next batch."""
        self._shape_tops(self.source.shapes())

    def forward(self) -> None:
        """Fill the tops with the next batch."""
        self._fill(self.source.next_batch())

    def _fill(self, batch: Sequence[np.ndarray | None]) -> None:
        for top, values in zip(self.tops, batch, strict=False):
            if values is not None:
                top.set_shape(tuple(values.shape))
                top.values()[...] = values


class SinkNode(TypedNode):
    """A layer that writes its bottoms to a file."""

    runs_here = True

    def __init__(self, sink: Sink, *args: Any) -> None:
        super().__init__(*args)
        self.sink = sink

    def setup(self) -> None:
        """Open the sink."""
        self.sink.setup(self.typed, self.phase, surroundings())

    def reshape(self) -> None:
        """Nothing: there are no tops."""

    def forward(self) -> None:
        """Write the bottoms."""
        self.sink.write([bottom.values() for bottom in self.bottoms])


class _BuiltIn(Layer):
    """What ``net.layers`` shows of a layer of a known type."""

    def __new__(cls, node: TypedNode) -> _BuiltIn:
        made: Any = super().__new__(cls)
        return made  # type: ignore[no-any-return]

    def __init__(self, node: TypedNode) -> None:
        self._node = node
        self.type = node.definition.text("type")
        self.phase = Phase(PHASES.index(node.phase))

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Nothing: the net has set the layer up."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the tops their shapes."""
        self._node.reshape()
