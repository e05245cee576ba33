"""DummyData: constants and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from bridge.caffe.state import STATE
from bridge.layers.base import CaffeLayer, Params
from bridge.layers.dummy_data import DummyData
from bridge.layers.fillers import fill
from bridge.schema import Shape, times
from bridge.schema.message import Message
from bridge.sources import BatchSource, Surroundings


class DummySource(BatchSource):
    """Fills each top by its filler: constants once, random numbers anew in every pass.

    Source: dummy_data_layer.cpp.
    """

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.BatchSource.setup`."""
        self.layer = cast(DummyData, layer)
        given = layer.definition.message(layer.message).messages("data_filler")
        fillers = [layer.parameters().of(filler) for filler in given] or [layer_params(layer)]
        self.fillers = fillers * len(layer.tops) if len(fillers) == 1 else fillers
        self.constants = [
            None if value is None else np.full(shape, value, np.float32)
            for value, shape in zip(self.layer.values, self.layer.shapes, strict=True)
        ]

    def shapes(self) -> Sequence[Shape]:
        """See :meth:`bridge.sources.BatchSource.shapes`."""
        return self.layer.shapes

    def next_batch(self) -> Sequence[np.ndarray | None]:
        """The random tops; ``None`` for a constant one, which was filled at the start and stays."""
        return [
            fill(filler, f"data_filler of {times(shape)}", shape, STATE.rng) if constant is None else None
            for filler, constant, shape in zip(self.fillers, self.constants, self.layer.shapes, strict=True)
        ]

    def first_batch(self) -> Sequence[np.ndarray | None]:
        """What the tops hold before the first pass: the constants."""
        return self.constants


def layer_params(layer: CaffeLayer) -> Params:
    """No filler: the constant zero."""
    return layer.parameters().of(Message())
