"""A layer's parameter message, read with the types of its fields."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import numpy as np

from bridge.errors import ModelError
from bridge.schema import Shape
from bridge.schema.message import Message, Symbol


class Params:
    """A layer's parameter message, read with types; a value that is not allowed is a ModelError.

    Args:
        message: The parameters.
        definition: The whole ``LayerParameter``: name and type for messages, and what lies outside ``message``.
        enum_start: The number of the first value in the message's enumerations.
    """

    def __init__(self, message: Message, definition: Message, enum_start: int = 0) -> None:
        self.message = message
        self.subject = f"layer '{definition.text('name')}' ({definition.text('type')})"
        self._definition, self._enum_start = definition, enum_start

    def of(self, message: Message) -> Params:
        """Another message of the same layer."""
        return Params(message, self._definition, self._enum_start)

    def other(self, name: str) -> Params:
        """Another field of the layer, such as ``loss_param``; absent is empty."""
        return self.of(self._definition.message(name))

    def inner(self, name: str) -> Params:
        """A message within this one, such as ``shape``; absent is empty."""
        return self.of(self.message.message(name))

    def __contains__(self, name: str) -> bool:
        return name in self.message

    def fail(self, problem: str, **fields: str) -> ModelError:
        """A ModelError about this layer; ``fields`` are those of :class:`~bridge.errors.BridgeError`."""
        return ModelError(problem, subject=self.subject, **fields)

    def read(self, name: str, kind: Any, default: Any) -> Any:
        """The field ``name`` as ``kind``: int, float, bool, str, a Literal, tuple[...], or Message."""
        options = [option for option in get_args(kind) if option is not type(None)]
        if get_origin(kind) in (typing.Union, types.UnionType):
            kind, options = options[0], list(get_args(options[0]))
        if get_origin(kind) is tuple:
            found = tuple(self._convert(name, value, options[0], []) for value in self.message.all(name))
            return found or (() if default is dataclasses.MISSING else default)
        value = self.message.message(name) if kind is Message and name in self.message else self.message.get(name)
        if value is None:
            if default is dataclasses.MISSING:
                raise self.fail(f"parameter '{name}' is missing")
            return default
        return self._convert(name, value, kind, options)

    def _convert(self, name: str, value: Any, kind: Any, options: list[Any]) -> Any:
        if get_origin(kind) is Literal:
            return self._choose(name, value, list(get_args(kind)))
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return single(value)
        if kind is int and isinstance(value, int) and -(1 << 31) <= value < 1 << 32:
            return int(value)
        if kind is bool and isinstance(value, int) and value in (0, 1):
            return bool(value)
        if kind is str and isinstance(value, str):
            return str(value)
        if kind is Message and isinstance(value, Message):
            return value
        expected = "a whole number of 32 bits" if kind is int else getattr(kind, "__name__", kind)
        raise self.fail(f"parameter '{name}' is {_brief(value)}", expected=f"{expected}")

    def _choose(self, name: str, value: Any, options: list[str]) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            place = value - self._enum_start
            value = options[place] if 0 <= place < len(options) else value
        if isinstance(value, str) and value in options:
            return str(value)
        raise self.fail(f"parameter '{name}' is {_brief(value)}", expected=f"one of {', '.join(options)}")


def single(value: float) -> float:
    """A number as caffe.proto's ``float`` has it, and Caffe computes with; infinite where it is beyond float32."""
    try:
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    except OverflowError:  # a whole number beyond float64 too
        return math.inf if value > 0 else -math.inf


def _brief(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = str(value) if isinstance(value, Symbol) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def field_pair(p: Params, names: Sequence[str], sides: tuple[str, str]) -> Shape:
    """A spatial parameter that is either repeated, or given as height and width.

    Args:
        p: The parameters.
        names: Names of the repeated field.
        sides: Names of its two one-axis forms, such as ``kernel_h`` and ``kernel_w``.
    """
    if sides[0] in p or sides[1] in p:
        if any(name in p for name in names):
            raise p.fail(f"has both '{names[0]}' and '{sides[0]}' or '{sides[1]}'", expected="one kind")
        return (p.read(sides[0], int, 0), p.read(sides[1], int, 0))
    return tuple(value for name in names for value in p.read(name, tuple[int, ...], ()))
