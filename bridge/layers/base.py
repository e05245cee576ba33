"""What every layer type shares: its registration, and how its parameters are read.

A layer type is one file in this folder with one class. The class declares the name of the type,
the message of ``LayerParameter`` that holds its parameters, and a field for each parameter, with
the name, type and default of caffe.proto. The base class reads the parameters from these
declarations. The class also gives the shapes of its blobs and tops, and its lowerings to ONNX and
Chainer. A lowering is handed the builder that it uses, so no layer file imports a framework.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from bridge.errors import ModelError, UsageError
from bridge.layers.params import Params, field_pair, single
from bridge.layers.shapes import canonical_axis, same_shapes, spread, squeeze
from bridge.schema import Blob, Blobs, Layer, Opaque, ParamSpec, Shape
from bridge.schema.message import Message, Symbol

if sys.version_info >= (3, 11):
    from typing import dataclass_transform
else:  # the decorator only tells type checkers what it does

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        return lambda decorated: decorated


REGISTRY: dict[str, type[CaffeLayer]] = {}
"""Every known layer type by Caffe's type string; Python layers by ``module.Class``."""

PYTHON = "Python"
"""Caffe's type of every layer that is written in Python."""

_FILLERS = {"weight": "weight_filler", "bias": "bias_filler", "gamma": "filler", "beta": "bias_filler"}
"""The usual field of a role's filler."""
_Class = TypeVar("_Class", bound="type[CaffeLayer]")
_Layer = TypeVar("_Layer", bound="CaffeLayer")
MANY = sys.maxsize
"""No upper bound on a layer's bottoms or tops."""


class CaffeLayer(Layer):
    """Base class of the known layer types."""

    message: ClassVar[str] = ""
    """The field of ``LayerParameter`` that holds this type's parameters."""
    enum_start: ClassVar[int] = 0
    """The number of the first value in the type's enumerations: 0 in most of caffe.proto, 1 in some."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names that forks have for that field."""
    bottom_count: ClassVar[tuple[int, int]] = (0, MANY)
    """The fewest and the most bottoms that Caffe allows."""
    top_count: ClassVar[tuple[int, int]] = (0, MANY)
    """The fewest and the most tops."""
    in_place: ClassVar[bool] = True
    """Whether Caffe lets the first top have the first bottom's name."""
    filler_fields: ClassVar[dict[str, str]] = {}
    """The field of the parameter message that holds a role's filler, where it is not the usual one."""
    initial: ClassVar[dict[str, float]] = {"gamma": 1.0, "scale": 1.0, "slope": 0.25}
    """What a role is filled with where the file names no filler; 0 for other roles."""
    harmless: ClassVar[Mapping[str, str]] = {}
    """Fields of the parameter message that are not read, and why they bear on no result at test time.

    What is harmless in every layer, such as fillers and engines, stands in ``bridge/caffe_files/fields.py``. A field
    that is neither read nor harmless makes an export fail.
    """
    more_messages: ClassVar[tuple[str, ...]] = ()
    """Other fields of ``LayerParameter`` that the type reads, such as ``quantization_param``."""
    ranks: ClassVar[dict[str, int]] = {"bias": 1, "mean": 1, "variance": 1, "scale_factor": 1}
    """Axes of a blob by role; blobs from files with legacy 4-D shapes are brought to it."""
    chainer_params = {"weight": "W", "bias": "b"}
    statistics = frozenset({"mean", "variance", "scale_factor"})

    types: ClassVar[tuple[str, ...]] = ()
    """Caffe's type strings, as given to :func:`layer_type`; the first one is the usual one."""

    @classmethod
    def define(cls, name: str, bottoms: Sequence[str] = (), tops: Sequence[str] = (), where: str = "") -> Message:
        """The definition of a new layer of this type, to which parameters can be added."""
        definition = Message(where, name=name, type=cls.types[0])
        definition.set("bottom", *bottoms)
        definition.set("top", *tops)
        return definition

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        """The type's own attributes from its parameter message.

        The default reads each declared field by its name. Types whose attributes are
        not one field each extend it.
        """
        return {name: p.read(name, kind, default) for name, kind, default in _own_fields(cls)}

    def parameters(self) -> Params:
        """The type's parameter message, to be read with types."""
        return Params(parameters_of(type(self), self.definition), self.definition, self.enum_start)

    def rank(self, role: str) -> int | None:
        """How many axes the blob of a role has; ``None`` leaves it as stored."""
        return self.ranks.get(role)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {}

    def filler(self, role: str) -> tuple[str, float]:
        return self.filler_fields.get(role) or _FILLERS.get(role, f"{role}_filler"), self.initial.get(role, 0.0)

    def attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name, _, _ in _own_fields(type(self))}

    def resized(self: _Layer, outputs: int, name: str = "") -> _Layer:
        made = super().resized(outputs, name)
        field, _ = made.filler("weight")
        if field in made.parameters():
            return made
        return made.with_parameters({field: Message(type="xavier")})  # Caffe's default, zeros, does not train

    def filled(self: _Layer, *bottoms: Shape, seed: int | None = None) -> _Layer:
        from bridge.layers.fillers import filled

        shapes = self.blob_shapes(*bottoms)
        return self.changed(
            blobs=Blobs({role: Blob.of(filled(self, role, shape, seed=seed)) for role, shape in shapes.items()}),
            uncovered="",
        )

    @property
    def loss_weights(self) -> tuple[float, ...]:
        # Source: caffe.proto ``LayerParameter.loss_weight``, ``Layer::SetLossWeights``
        given = tuple(_float(weight) for weight in self.definition.all("loss_weight"))
        return given or (self.default_loss_weight, *(0.0,) * (len(self.tops) - 1))

    def check_wiring(self) -> None:
        """Count bottoms, tops, and what is given for each. Source: ``Layer::CheckBlobCounts``, ``Net::Init``.

        Raises:
            ModelError: There are too few or too many, or the type does not work in place and is asked to.
        """
        for what, names, (least, most) in (
            ("bottoms", self.bottoms, self.bottom_count),
            ("tops", self.tops, self.top_count),
        ):
            if not least <= len(names) <= most:
                wanted = {least: str(least), MANY: f"at least {least}"}.get(most, f"{least} to {most}")
                raise self.fail(f"has {len(names)} {what}", expected=wanted)
        # A loss without a top gets one from Caffe.
        for field, places in (("propagate_down", len(self.bottoms)), ("loss_weight", max(1, len(self.tops)))):
            given = len(self.definition.all(field))
            if given not in (0, places):
                raise self.fail(f"has {given} {field}", expected=f"none, or {places}")
        if len(self.params) > len(self.roles(0)) and len(self.params) != len(self.roles(len(self.params))):
            raise self.fail(
                f"has {len(self.params)} param", expected=f"at most {len(self.roles(0))}, one for each blob"
            )
        if not self.in_place and self.tops[:1] == self.bottoms[:1] != ():
            raise self.fail(f"works in place on blob '{self.tops[0]}', which its type does not")

    def with_blobs(self: _Layer, blobs: Sequence[Blob]) -> _Layer:
        """The layer with its stored blobs, by role and free of legacy shapes.

        Raises:
            ModelError: The number of blobs is not the one the parameters demand.
        """
        roles = self.roles(len(blobs))
        if len(roles) != len(blobs):
            names = f" ({', '.join(roles)})" if roles else ""
            raise self.fail(f"has {len(blobs)} blobs", expected=f"{len(roles)}{names}")
        named = {role: squeeze(blob, self.rank(role)) for role, blob in zip(roles, blobs, strict=True)}
        return dataclasses.replace(self, blobs=Blobs(named))

    def with_parameters(self: _Layer, parameters: Mapping[str, Any]) -> _Layer:
        if not self.message:
            raise UsageError("the type has no parameters", subject=self.label)
        definition, values = self.definition.copy(), parameters_of(type(self), self.definition).copy()
        for name, value in parameters.items():
            values.set(name, *(value if isinstance(value, (list, tuple)) else [] if value is None else [value]))
        definition.set(
            next((name for name in (self.message, *self.aliases) if name in definition), self.message), values
        )
        own = type(self).read(Params(values, definition, self.enum_start))
        made = dataclasses.replace(self, definition=definition, **own)
        made.check_wiring()
        return made.with_blobs([blob for _, blob in self.blobs.entries()]) if self.blobs else made


class NeuronLayer(CaffeLayer):
    """Base of the types that turn one bottom into one top of its shape. Source: neuron_layer.cpp."""

    bottom_count = (1, 1)
    top_count = (1, 1)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (bottoms[0],)


class ElementwiseLayer(NeuronLayer):
    """Base of the types whose every value depends on the value at its own place alone, such as ReLU."""

    float16_safe = True
    adds_many = False


class MovingLayer(CaffeLayer):
    """Base of the types that move or repeat values and compute nothing, such as Concat."""

    float16_safe = True
    rounds_near_one = False
    adds_many = False


@dataclass_transform(frozen_default=True, kw_only_default=True)
def layer_type(*types: str) -> Callable[[_Class], _Class]:
    """Make the decorated class a frozen dataclass and register it for Caffe's ``types``.

    A class from outside this package may replace a built-in type: the type may have been added
    after the class was written. A warning says so.

    Raises:
        UsageError: Two classes from outside, or two built-in ones, have the same type.
    """

    def decorate(cls: _Class) -> _Class:
        made = dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)
        for name in types:
            _check_free(name, made)
        made.types = types
        REGISTRY.update(dict.fromkeys(types, made))
        return made  # type: ignore[return-value]

    return decorate


def _check_free(name: str, new: type) -> None:
    """Refuse a second definition of a type; let one from outside take the place of a built-in one."""
    old = REGISTRY.get(name)
    if old is None:
        return
    if _built_in(old) and not _built_in(new):
        warnings.warn(
            f"layer type '{name}': {new.__module__}.{new.__qualname__} replaces the built-in one", stacklevel=4
        )
        return
    homes = " and ".join(f"{home.__module__}.{home.__qualname__}" for home in (old, new))
    raise UsageError(f"layer type '{name}' is defined twice: {homes}")


def _built_in(cls: type) -> bool:
    return cls.__module__.startswith("bridge.")


def build_layer(definition: Message, blobs: Sequence[Blob] = (), uncovered: str = "") -> Layer:
    """A typed layer from its V2 definition and its stored blobs.

    Never fails: a layer of an unknown type, or whose parameters or blobs make no sense,
    becomes an :class:`~bridge.schema.Opaque` that says so when it is to be run.

    Args:
        definition: ``LayerParameter`` without blobs.
        blobs: The stored arrays in Caffe's order; none for a definition alone.
        uncovered: Why the reader could not deliver the blobs, if it could not.
    """
    common: dict[str, Any] = {
        "name": definition.text("name"),
        "type": definition.text("type"),
        "bottoms": tuple(map(str, definition.all("bottom"))),
        "tops": tuple(map(str, definition.all("top"))),
        "definition": definition,
        "params": tuple(_param_spec(param) for param in definition.messages("param")),
        "uncovered": uncovered,
    }
    name = registered_name(definition)
    cls = REGISTRY.get(name) or _offered(name)
    if cls is None:
        problem = f"unknown layer type '{name}'{_misspelt(name)}"
    else:
        try:
            layer = cls(**common, **cls.read(Params(parameters_of(cls, definition), definition, cls.enum_start)))
            if "" in (*layer.bottoms, *layer.tops):
                raise layer.fail("has a bottom or top without a name")
            layer.check_wiring()
            return layer.with_blobs(blobs) if blobs else layer
        except ModelError as error:
            problem = error.reason
    numbered = {f"blob{index}": blob for index, blob in enumerate(blobs)}
    return Opaque(**common, blobs=Blobs(numbered), problem=problem, kind=name, known=cls is not None)


def _misspelt(name: str) -> str:
    """What a layer type may have been meant to be."""
    close = difflib.get_close_matches(name, REGISTRY, 1, 0.8)
    return f": did you mean '{close[0]}'?" if close else ""


def _offered(name: str) -> type[CaffeLayer] | None:
    """A layer type that an installed package offers: its entry point of that name in ``weight_bridge.layers``.

    Raises:
        UsageError: The package fails to load.
    """
    point = _entry_points().get(name)
    if point is None:
        return None
    try:
        point.load()
    except Exception as error:  # whatever the package's code raises
        raise UsageError(f"{type(error).__name__}: {error}", where=f"layer type '{name}' from {point.value}") from error
    return REGISTRY.get(name)


@functools.cache
def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="weight_bridge.layers")}


def registered_name(definition: Message) -> str:
    """What a layer's type is registered as: Caffe's type string, or a Python layer's ``module.Class``."""
    if definition.text("type") != PYTHON:
        return definition.text("type")
    python = definition.message("python_param")
    return f"{python.text('module')}.{python.text('layer')}"


def parameters_of(cls: type[CaffeLayer], definition: Message) -> Message:
    """The type's parameter message, under whichever of its names the definition has it."""
    return definition.message(next((name for name in (cls.message, *cls.aliases) if name in definition), cls.message))


_OWN_FIELDS: dict[Any, tuple[tuple[str, Any, Any], ...]] = {}


def _own_fields(cls: type[CaffeLayer]) -> tuple[tuple[str, Any, Any], ...]:
    """Name, type and default of the fields that a layer type adds to :class:`Layer`; worked out once."""
    if cls not in _OWN_FIELDS:
        hints = typing.get_type_hints(cls)
        common = {field.name for field in dataclasses.fields(Layer)}
        own = (field for field in dataclasses.fields(cls) if field.name not in common)
        _OWN_FIELDS[cls] = tuple((field.name, hints[field.name], field.default) for field in own)
    return _OWN_FIELDS[cls]


def _param_spec(param: Message) -> ParamSpec:
    return ParamSpec(
        name=param.text("name"),
        lr_mult=_float(param.get("lr_mult", 1.0)),
        decay_mult=_float(param.get("decay_mult", 1.0)),
        share_mode=param.text("share_mode", "STRICT"),
    )


def _float(value: Any) -> float:
    return single(value) if isinstance(value, (int, float)) else 1.0


__all__ = [
    "MANY",
    "REGISTRY",
    "CaffeLayer",
    "ElementwiseLayer",
    "MovingLayer",
    "NeuronLayer",
    "Params",
    "Symbol",
    "build_layer",
    "canonical_axis",
    "field_pair",
    "layer_type",
    "registered_name",
    "same_shapes",
    "single",
    "spread",
    "squeeze",
]
