"""What data layers read and write: one class per layer type, imported when a net has such a layer.

A source gives batches in the order and with the numbers of Caffe's own layer::

    source = source_of(layer)
    source.setup(layer, "TRAIN", Surroundings(random=Mersenne(seed)))
    data, label = source.next_batch()
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import ModelError
from bridge.layers.base import CaffeLayer
from bridge.layers.data import Data
from bridge.layers.hdf5_data import HDF5Data
from bridge.layers.hdf5_output import HDF5Output
from bridge.layers.image_data import ImageData
from bridge.layers.image_seg_data import DenseImageData
from bridge.layers.memory_data import MemoryData
from bridge.layers.window_data import WindowData
from bridge.limits.budget import BUDGET, shape_problem
from bridge.schema import Layer, Shape, count, times
from bridge.sources.randoms import Mersenne


@dataclass
class Surroundings:
    """What a source finds around it.

    Attributes:
        random: The generator that seeds the sources' own, as Caffe's ``caffe_rng`` does.
        resolve: Turns a path in a net's definition into one to open. By default it stays as it
            is, relative to the working directory, as in Caffe.
    """

    random: Mersenne = field(default_factory=Mersenne)
    resolve: Callable[[str], Path] = Path


class BatchSource:
    """Where a data layer gets its batches from."""

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """Open what the layer reads.

        Args:
            layer: The layer with its parameters.
            phase: ``TRAIN`` or ``TEST``.
            around: Random numbers and paths.

        Raises:
            MissingFileError: There is nothing to open.
            FormatError: It is not what the layer reads.
            ModelError: The layer's parameters contradict each other or the data.
            MissingExtraError: A package that reads it is not installed.
        """
        raise NotImplementedError

    def shapes(self) -> Sequence[Shape]:
        """The shape of each top of the next batch."""
        raise NotImplementedError

    def new_batch(self) -> list[np.ndarray]:
        """Zeros of the shapes that :meth:`shapes` gives, float32.

        Raises:
            BudgetError: They need more memory than there is.
        """
        return [new_array(shape) for shape in self.shapes()]

    def next_batch(self) -> Sequence[np.ndarray | None]:
        """The values of each top, float32, of the shapes that :meth:`shapes` gave; ``None`` leaves a top as it is."""
        raise NotImplementedError

    def first_batch(self) -> Sequence[np.ndarray | None]:
        """What the tops hold before the first pass, where that is not zero; ``None`` for zeros."""
        return ()


def new_array(shape: Shape) -> np.ndarray:
    """Zeros, float32; see :meth:`BatchSource.new_batch`."""
    if problem := shape_problem(shape):
        raise ModelError(f"a batch's {problem}")
    BUDGET.check(4 * count(shape), f"a batch of {times(shape)}")
    return np.zeros(shape, np.float32)


class Sink:
    """Where a layer without tops writes its bottoms to."""

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """Open what the layer writes; see :meth:`BatchSource.setup`."""
        raise NotImplementedError

    def write(self, bottoms: Sequence[np.ndarray]) -> None:
        """Write the values of each bottom, float32."""
        raise NotImplementedError


SOURCES: dict[type[CaffeLayer], str] = {
    Data: "bridge.sources.database:DatabaseSource",
    DenseImageData: "bridge.sources.segmentation:DenseImageSource",
    HDF5Data: "bridge.sources.hdf5:HDF5Source",
    ImageData: "bridge.sources.image_list:ImageListSource",
    MemoryData: "bridge.sources.memory:MemorySource",
    WindowData: "bridge.sources.windows:WindowSource",
}
"""Layer type -> ``module:class`` of its :class:`BatchSource`."""

SINKS: dict[type[CaffeLayer], str] = {HDF5Output: "bridge.sources.hdf5:HDF5Sink"}
"""Layer type -> ``module:class`` of its :class:`Sink`."""


def source_of(layer: Layer) -> BatchSource | None:
    """A new source for a data layer, not set up yet; ``None`` if the layer is no data layer."""
    home = _home(layer, SOURCES)
    found: BatchSource | None = _make(home) if home else None
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
