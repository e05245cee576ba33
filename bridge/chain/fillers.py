"""Caffe's fillers as initializers of Chainer."""

from __future__ import annotations

from typing import Any

from bridge.chain.functions import chainer
from bridge.layers.base import CaffeLayer
from bridge.layers.fillers import filled

__all__ = ["FillerInitializer", "filled"]


class FillerInitializer:
    """A layer's filler as an initializer of Chainer; ``copy(mode="init")`` of a link calls it.

    Args:
        layer: The layer.
        role: The role of the blob that it fills.

    Source: chainer.initializer.Initializer.
    """

    dtype = None
    """Chainer's sign that the initializer takes an array of any dtype."""

    def __init__(self, layer: CaffeLayer, role: str) -> None:
        self.layer, self.role = layer, role

    def __call__(self, array: Any) -> None:
        """Fill an array of NumPy or CuPy."""
        values = filled(self.layer, self.role, tuple(array.shape))
        array[...] = chainer.backend.get_array_module(array).asarray(values)
