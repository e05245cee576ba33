"""Which node a layer's definition becomes: a layer in Python, a data layer, or one that an engine runs."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import cast

from bridge.caffe.blob import Blob
from bridge.caffe.layer import PHASES, InputNode, Layer, Node, Phase, SinkNode, SourceNode, TypedNode
from bridge.caffe.sources import sink_of, source_of
from bridge.caffe_files.proto import schema
from bridge.errors import ModelError, NotFoundError, UnsupportedLayerError
from bridge.layers.base import CaffeLayer, build_layer, registered_name
from bridge.layers.loss import Loss
from bridge.schema import Layer as TypedLayer
from bridge.schema import Opaque
from bridge.schema.message import Message


class PythonNode(Node):
    """A layer in Python."""

    def __init__(self, layer: Layer, definition: Message, bottoms: list[Blob], tops: list[Blob], phase: str) -> None:
        super().__init__(definition, bottoms, tops, phase)
        self.layer = layer

    def setup(self) -> None:
        """Hand the parameters over, and call the layer's ``setup`` and ``reshape``."""
        self.layer.param_str = self.definition.message("python_param").text("param_str")
        self.layer.phase = Phase(PHASES.index(self.phase))
        with self._named("setup"):
            self.layer.setup(self.bottoms, self.tops)
        self.reshape()

    def reshape(self) -> None:
        """Call the layer's ``reshape``."""
        with self._named("reshape"):
            self.layer.reshape(self.bottoms, self.tops)

    def forward(self) -> None:
        """Call the layer's ``forward``."""
        with self._named("forward"):
            self.layer.forward(self.bottoms, self.tops)

    def backward(self) -> None:
        """Call the layer's ``backward``."""
        with self._named("backward"):
            self.layer.backward(self.tops, [*self.propagate], self.bottoms)

    @contextlib.contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """Say in a traceback which layer of the net raised; the exception stays what it is, as in Caffe."""
        try:
            yield
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"in {method} of {self.label}, {type(self.layer).__name__}")
            raise


def make_node(definition: Message, bottoms: list[Blob], tops: list[Blob], phase: str) -> Node:
    """A layer in its net, not set up yet.

    Raises:
        ModelError: Its parameters make no sense.
        UnsupportedLayerError: Its type is not known.
    """
    if registered_name(definition) != definition.text("type"):
        layer = _python_layer(definition)
        if layer is not None:
            return PythonNode(layer, definition, bottoms, tops, phase)
    typed: TypedLayer = build_layer(definition)
    if isinstance(typed, Opaque):
        unknown = typed.problem.startswith("unknown layer type")
        raise (UnsupportedLayerError if unknown else ModelError)(typed.problem, where=typed.label)
    _check_loss(typed)
    common = (cast(CaffeLayer, typed), definition, bottoms, tops, phase)
    if source := source_of(typed):
        return SourceNode(source, *common)
    if sink := sink_of(typed):
        return SinkNode(sink, *common)
    if typed.is_input:
        if typed.training_only:
            raise UnsupportedLayerError("there is no source for data layers of this type", where=typed.label)
        return InputNode(*common)
    return TypedNode(*common)


def _check_loss(typed: TypedLayer) -> None:
    """Refuse a loss that a fork sums up otherwise: its number would be wrong. A net for inference has no loss."""
    given = typed.definition.message("loss_param").names() if isinstance(typed, Loss) else []
    for name in given:
        if name not in schema("LossParameter").by_name and name not in cast(Loss, typed).fork_fields:
            hint = "leave the loss and its data out, as a deploy.prototxt does"
            raise UnsupportedLayerError(
                f"loss_param has '{name}', which is not computed here", where=typed.label, hint=hint
            )


def _python_layer(definition: Message) -> Layer | None:
    """The user's own layer; ``None`` if there is no module of that name, but a layer type here that replaces it."""
    param = definition.message("python_param")
    module, name = param.text("module"), param.text("layer")
    where = f"layer '{definition.text('name')}' ({definition.text('type')})"
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        if not isinstance(build_layer(definition), Opaque):
            return None
        hint = f"add its folder to PYTHONPATH or sys.path; searched: {', '.join(sys.path[:3])}, ..."
        raise NotFoundError(f"there is no module '{module}'", where=where, hint=hint) from None
    if not hasattr(loaded, name):
        raise NotFoundError(f"module '{module}' ({loaded.__file__}) has no class '{name}'", where=where)
    kind = getattr(loaded, name)
    if not (isinstance(kind, type) and issubclass(kind, Layer)):
        raise ModelError(f"'{module}.{name}' is no layer", expected="a class that inherits caffe.Layer", where=where)
    return kind(definition)
