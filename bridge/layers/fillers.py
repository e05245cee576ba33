"""Caffe's fillers: what a layer's blobs hold before training.

Source: caffe.proto ``FillerParameter``, filler.hpp.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import CaffeLayer, Params
from bridge.schema import Shape, count, times

_NORMS = Literal["FAN_IN", "FAN_OUT", "AVERAGE"]


def filled(layer: CaffeLayer, role: str, shape: Shape, *, seed: int | None = None) -> np.ndarray:
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
        ModelError: Caffe would not fill the blob so.
    """
    field, value = layer.filler(role)
    params = layer.parameters().inner(field)
    neutral = value if "type" not in params else 0.0
    rng = np.random.default_rng(None if seed is None else [seed, *role.encode()])
    return fill(params, f"{field} of {times(shape)}", shape, rng, neutral)


def fill(params: Params, what: str, shape: Shape, rng: np.random.Generator, constant: float = 0.0) -> np.ndarray:
    """Values by a ``FillerParameter``.

    Args:
        params: The filler.
        what: What is filled, for messages.
        shape: Of the values.
        rng: Draws the random ones.
        constant: The value where the filler gives none.

    Returns:
        float32 of ``shape``.

    Raises:
        UnsupportedLayerError: The filler's type is not one of Caffe's.
        ModelError: Caffe would not fill the blob so.
    """
    kind = params.read("type", str, "constant")
    if kind not in _FILLERS:
        raise UnsupportedLayerError(
            f"unknown filler '{kind}'", subject=params.subject, hint=f"fillers: {', '.join(_FILLERS)}"
        )
    filler = _Filler(params, what, constant)
    filler.demand(count(shape) > 0, "there are no values to fill")
    filler.demand(kind == "gaussian" or filler.sparse == -1, f"sparse is for gaussian, the type is {kind}")
    return np.asarray(_FILLERS[kind](rng, shape, filler), np.float32).reshape(shape)


class _Filler:
    """A filler's numbers with caffe.proto's defaults."""

    def __init__(self, params: Params, what: str, value: float) -> None:
        self._params, self._what, self._value = params, what, value

    def demand(self, holds: bool, problem: str) -> None:
        """Refuse what Caffe's own checks refuse."""
        if not holds:
            raise self._params.fail(f"{self._what}: {problem}")

    def number(self, name: str, default: float) -> float:
        return float(self._params.read(name, float, default))

    @property
    def value(self) -> float:
        return self.number("value", self._value)

    @property
    def sparse(self) -> int:
        return int(self._params.read("sparse", int, -1))

    def fan(self, shape: Shape) -> float:
        """The number that xavier and msra scale by: fan in, fan out or their mean."""
        self.demand(bool(shape), "the blob has no axes to count inputs by")
        total = count(shape)
        fan_in = total / shape[0]
        fan_out = total / shape[1] if len(shape) > 1 else total
        mode = self._params.read("variance_norm", _NORMS, "FAN_IN")
        return {"FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}.get(mode, fan_in)


def _constant(rng: Any, shape: Shape, f: _Filler) -> Any:
    return np.full(shape, f.value)


def _uniform(rng: Any, shape: Shape, f: _Filler) -> Any:
    low, high = f.number("min", 0), f.number("max", 1)
    f.demand(
        low <= high and math.isfinite(high - low), f"min is {low:g} and max is {high:g}, expected no less than min"
    )
    return rng.uniform(low, high, shape)


def _gaussian(rng: Any, shape: Shape, f: _Filler) -> Any:
    std, sparse = f.number("std", 1), f.sparse
    f.demand(std > 0, f"std is {std:g}, expected a positive number")
    values = rng.normal(f.number("mean", 0), std, shape)
    if sparse != -1:
        f.demand(bool(shape) and 0 <= sparse <= shape[0], f"sparse is {sparse}, expected 0 to the first extent, or -1")
        values *= rng.random(shape) < sparse / shape[0]
    return values


def _xavier(rng: Any, shape: Shape, f: _Filler) -> Any:
    limit = math.sqrt(3 / f.fan(shape))
    return rng.uniform(-limit, limit, shape)


def _msra(rng: Any, shape: Shape, f: _Filler) -> Any:
    return rng.normal(0, math.sqrt(2 / f.fan(shape)), shape)


def _positive_unitball(rng: Any, shape: Shape, f: _Filler) -> Any:
    f.demand(bool(shape), "the blob has no axes to make unit sums along")
    values = rng.uniform(0, 1, shape)
    return values / values.reshape(shape[0], -1).sum(axis=1).reshape(-1, *[1] * (len(shape) - 1))


def _bilinear(rng: Any, shape: Shape, f: _Filler) -> Any:
    """Weights of a deconvolution that interpolates."""
    f.demand(len(shape) == 4 and shape[2] == shape[3], "expected four axes, the last two equal")
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
