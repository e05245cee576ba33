"""Preprocessing baked into an exported model: channel order, mean, scale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.errors import UsageError
from bridge.schema import Net, times


@dataclass(frozen=True)
class Preprocess:
    """``(x - mean) * scale``, after the channels were turned round if ``bgr`` says so.

    Attributes:
        mean: Empty, one value, one per channel (C,), or an image (C, H, W); float32, in Caffe's order.
        scale: Factor.
        bgr: The model is to be fed RGB and turns it to Caffe's BGR.

    Source: data_transformer.cpp.
    """

    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    scale: float = 1.0
    bgr: bool = False

    def __bool__(self) -> bool:
        return bool(self.mean.size) or self.scale != 1 or self.bgr

    def input_of(self, net: Net) -> str:
        """The net's image input.

        Raises:
            UsageError: It has none, or the mean does not fit it.
        """
        images = [name for name, shape in net.inputs.items() if shape is not None and len(shape) == 4]
        if not images:
            raise UsageError("no input of four axes to preprocess", where=net.where)
        shape = net.inputs[images[0]] or ()
        fits = self.mean.size in (0, 1) or self.mean.shape in (shape[1:2], shape[1:])
        if not fits:
            raise UsageError(f"the mean is {times(self.mean.shape)}, the input is {times(shape)}", where=net.where)
        return images[0]

    def _mean(self) -> np.ndarray:
        return self.mean if self.mean.ndim == 3 else self.mean.reshape(-1, 1, 1)

    def emit(self, g: Any, x: str) -> str:
        """Add the nodes; returns the value that the net is fed."""
        if self.bgr:
            x = g.Slice(x, g.ints([-1]), g.ints([-(2**31)]), g.ints([1]), g.ints([-1]))
        if self.mean.size:
            x = g.Sub(x, g.const(self._mean(), "mean"))
        return str(g.Mul(x, g.const(np.float32(self.scale)))) if self.scale != 1 else x

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The same on an array (N, C, H, W) float32."""
        y = x[:, ::-1] if self.bgr else x
        y = y - self._mean() if self.mean.size else y
        return np.ascontiguousarray(y * np.float32(self.scale), np.float32)
