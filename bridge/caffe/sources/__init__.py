"""What data layers of a net read and write: those of :mod:`bridge.sources`, and random numbers of this process."""

from __future__ import annotations

from bridge import sources
from bridge.caffe.state import STATE
from bridge.layers.dummy_data import DummyData
from bridge.schema import Layer
from bridge.sources import BatchSource, Sink, Surroundings, sink_of

__all__ = ["BatchSource", "Sink", "sink_of", "source_of", "surroundings"]


def source_of(layer: Layer) -> BatchSource | None:
    """A new source for a data layer, not set up yet; ``None`` if the layer is no data layer."""
    if isinstance(layer, DummyData):
        from bridge.caffe.sources.dummy import DummySource

        return DummySource()
    return sources.source_of(layer)


def surroundings() -> Surroundings:
    """Random numbers as ``set_random_seed`` seeded them, and paths as this process resolves them."""
    return Surroundings(STATE.mersenne, STATE.resolve)
