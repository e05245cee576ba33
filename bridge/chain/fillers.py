"""Caffe's fillers: what a layer's blobs hold before training.

Source: caffe.proto ``FillerParameter``, filler.hpp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.errors import UnsupportedLayerError
from bridge.layers.base import CaffeLayer
from bridge.message import Message
from bridge.schema import Layer, Shape, count

_FIELDS = {"weight": "weight_filler", "bias": "bias_filler", "gamma": "filler", "beta": "bias_filler"}
_NEUTRAL = {"gamma": 1.0, "scale": 1.0, "scale_factor": 0.0, "slope": 0.25}


def filled(layer: Layer, role: str, shape: Shape, *, seed: int | None = None) -> np.ndarray:
    """New values for a blob, by the layer's own filler.

    Args:
        layer: The layer.
        role: The blob's role.
        shape: The blob's shape.
        seed: Of the generator; the role is mixed in, so that blobs differ.

    Returns:
        float32 of ``shape``.

    Raises:
        UnsupportedLayerError: The filler's type is not one of Caffe's.
    """
    message = layer.definition.message(layer.message) if isinstance(layer, CaffeLayer) else Message()
    own = layer.filler_fields if isinstance(layer, CaffeLayer) else {}
    filler = message.message(own.get(role) or _FIELDS.get(role, f"{role}_filler"))
    rng = np.random.default_rng(None if seed is None else [seed, *role.encode()])
    kind = filler.text("type", "constant")
    if kind not in _FILLERS:
        raise UnsupportedLayerError(
            f"unknown filler '{kind}'", where=layer.label, hint=f"fillers: {', '.join(_FILLERS)}"
        )
    default = _NEUTRAL.get(role, 0.0) if "type" not in filler else 0.0
    return np.asarray(_FILLERS[kind](rng, shape, _Filler(filler, default)), np.float32).reshape(shape)


class FillerInitializer:
    """A layer's filler as an initializer of Chainer; ``copy(mode="init")`` of a link calls it.

    Args:
        layer: The layer.
        role: The role of the blob that it fills.

    Source: chainer.initializer.Initializer.
    """

    dtype = None
    """Chainer's sign that the initializer takes an array of any dtype."""

    def __init__(self, layer: Layer, role: str) -> None:
        self.layer, self.role = layer, role

    def __call__(self, array: Any) -> None:
        """Fill an array of NumPy or CuPy."""
        values = filled(self.layer, self.role, tuple(array.shape))
        array[...] = chainer.backend.get_array_module(array).asarray(values)


class _Filler:
    """A filler's numbers with caffe.proto's defaults."""

    def __init__(self, message: Message, value: float) -> None:
        self._message, self._value = message, value

    def number(self, name: str, default: float) -> float:
        value = self._message.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default

    @property
    def value(self) -> float:
        return self.number("value", self._value)

    def fan(self, shape: Shape) -> float:
        """The number that xavier and msra scale by: fan in, fan out or their mean."""
        total = count(shape)
        fan_in = total / shape[0] if shape else 1
        fan_out = total / shape[1] if len(shape) > 1 else total
        mode = {"1": "FAN_OUT", "2": "AVERAGE"}.get(norm := self._message.text("variance_norm", "FAN_IN"), norm)
        return {"FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}.get(mode, fan_in)


def _constant(rng: Any, shape: Shape, f: _Filler) -> Any:
    return np.full(shape, f.value)


def _uniform(rng: Any, shape: Shape, f: _Filler) -> Any:
    return rng.uniform(f.number("min", 0), f.number("max", 1), shape)


def _gaussian(rng: Any, shape: Shape, f: _Filler) -> Any:
    values = rng.normal(f.number("mean", 0), f.number("std", 1), shape)
    sparse = f.number("sparse", -1)
    if sparse >= 0 and shape:
        values *= rng.random(shape) < sparse / shape[0]
    return values


def _xavier(rng: Any, shape: Shape, f: _Filler) -> Any:
    limit = math.sqrt(3 / f.fan(shape))
    return rng.uniform(-limit, limit, shape)


def _msra(rng: Any, shape: Shape, f: _Filler) -> Any:
    return rng.normal(0, math.sqrt(2 / f.fan(shape)), shape)


def _positive_unitball(rng: Any, shape: Shape, f: _Filler) -> Any:
    values = rng.uniform(0, 1, shape)
    return values / values.reshape(shape[0], -1).sum(axis=1).reshape(-1, *[1] * (len(shape) - 1))


def _bilinear(rng: Any, shape: Shape, f: _Filler) -> Any:
    """Weights of a deconvolution that interpolates."""
    half = math.ceil(shape[-1] / 2)
    centre = (shape[-1] - 1) / (2 * half)
    line = 1 - np.abs(np.arange(shape[-1]) / half - centre)
    return np.broadcast_to(np.outer(line, line), shape)


_FILLERS = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "xavier": _xavier,
    "msra": _msra,
    "positive_unitball": _positive_unitball,
    "bilinear": _bilinear,
}
