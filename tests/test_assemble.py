"""From what is stored, and a prototxt, to a net."""

from __future__ import annotations

import time

import numpy as np

from bridge.assemble import assemble
from bridge.message import Message
from bridge.schema import Blob, RawLayer, RawNet


def stored(name: str, *blobs: Blob, uncovered: str = "") -> RawLayer:
    return RawLayer(name, "Scale", Message(name=name, type="Scale"), blobs, uncovered)


def prototxt(*names: str) -> Message:
    return Message(layer=[Message(name=name, type="Scale", bottom="x", top="x") for name in names])


def test_of_several_stored_layers_the_last_with_blobs_counts() -> None:
    one, two = Blob.of(np.ones(1)), Blob.of(np.ones(2))
    raw = RawNet("n", (stored("a", uncovered="why"), stored("a", one), stored("a", two), stored("a")))
    assert assemble(raw, prototxt("a"))["a"].blobs.blob("gamma") is two
    raw = RawNet("n", (stored("a", uncovered="why"), stored("a", uncovered="not")))
    assert assemble(raw, prototxt("a"))["a"].uncovered == "why"


def test_many_layers_take_time_in_proportion() -> None:
    blob = Blob.of(np.ones(1))
    raw = RawNet("n", tuple(stored(f"layer{index}", blob) for index in range(20_000)))
    start = time.perf_counter()
    net = assemble(raw, prototxt(*(f"other{index}" for index in range(20_000))))
    assert time.perf_counter() - start < 20
    assert len(net.notes) == 20_000
    assert "did you mean" in net.notes[0]
    assert "did you mean" not in net.notes[-1]
