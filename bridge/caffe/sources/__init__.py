"""What data layers read: one class per layer type, imported when a net has such a layer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.layers.base import CaffeLayer
from bridge.layers.dummy_data import DummyData
from bridge.schema import Layer, Shape


class Source:
    """Where a data layer gets its batches from."""

    def setup(self, layer: CaffeLayer, phase: str) -> None:
        """Open what the layer reads.

        Args:
            layer: The layer with its parameters.
            phase: ``TRAIN`` or ``TEST``.
        """
        raise NotImplementedError

    def shapes(self) -> Sequence[Shape]:
        """The shape of each top of the next batch."""
        raise NotImplementedError

    def next_batch(self) -> Sequence[np.ndarray | None]:
        """The values of each top, float32, of the shapes that :meth:`shapes` gave; ``None`` leaves a top as it is."""
        raise NotImplementedError

    def first_batch(self) -> Sequence[np.ndarray | None]:
        """What the tops hold before the first pass, where that is not zero; ``None`` for zeros."""
        return ()


class Sink:
    """Where a layer without tops writes its bottoms to."""

    def setup(self, layer: CaffeLayer, phase: str) -> None:
        """Open what the layer writes; see :meth:`Source.setup`."""
        raise NotImplementedError

    def write(self, bottoms: Sequence[np.ndarray]) -> None:
        """Write the values of each bottom, float32."""
        raise NotImplementedError


SOURCES: dict[type[CaffeLayer], str] = {
    DummyData: "bridge.caffe.sources.dummy:DummySource",
}
"""Layer type -> ``module:class`` of its :class:`Source`."""

SINKS: dict[type[CaffeLayer], str] = {}
"""Layer type -> ``module:class`` of its :class:`Sink`."""


def source_of(layer: Layer) -> Source | None:
    """A new source for a data layer, not set up yet; ``None`` if the layer is no data layer."""
    home = _home(layer, SOURCES)
    found: Source | None = _make(home) if home else None
    return found


def sink_of(layer: Layer) -> Sink | None:
    """A new sink for a layer that writes, not set up yet; ``None`` if the layer is none."""
    home = _home(layer, SINKS)
    found: Sink | None = _make(home) if home else None
    return found


def _home(layer: Layer, table: dict[type[CaffeLayer], str]) -> str:
    return next((home for kind, home in table.items() if isinstance(layer, kind)), "")


def _make(home: str) -> Any:
    module, name = home.split(":")
    return getattr(importlib.import_module(module), name)()
