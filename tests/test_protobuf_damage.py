"""Damaged caffemodels end in a net or an error, whatever is damaged."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from backends.protobuf import read
from bridge.errors import FormatError
from bridge.schema import RawNet
from bridge.schema.message import Message
from tests import encode
from tests.conftest import FIXTURES
from tests.encode import blob, chunk, net, number
from tests.strategies import files as strategies
from tests.test_protobuf_reader import plain

pytestmark = pytest.mark.damage

# -- robustness ------------------------------------------------------------------------------

SMALL = ("conv_group2", "net_alexnet_mini_v0", "net_alexnet_mini_v1")


def outcome(path: Path) -> RawNet | None:
    """Read the file and all its values: a net, or nothing where the file is refused as it should be."""
    try:
        raw = read(path)
        for layer in raw.layers:
            for stored in layer.blobs:
                assert stored.numpy().shape == stored.shape
    except FormatError:
        return None
    return raw


def small_model(name: str) -> bytes:
    """A small model, its values cut down so that most bytes are structure."""
    whole = read(FIXTURES / "golden" / name / "weights.caffemodel")
    generation = {"_v0": "V0", "_v1": "V1"}.get(name[-3:], "V2")
    layers = []
    for layer in whole.layers:
        blobs = [blob(stored.numpy().reshape(-1)[:3]) for stored in layer.blobs]
        if generation == "V2" or layer.type in encode.V0_TYPES:
            layers.append((plain(layer.definition), blobs))
    return net(layers, generation, Message("", name=name))


@pytest.mark.parametrize("name", SMALL)
def test_every_truncation(scratch: Path, name: str) -> None:
    data = small_model(name)
    for size in range(len(data)):
        scratch.write_bytes(data[:size])
        outcome(scratch)
    scratch.write_bytes(data)
    assert outcome(scratch) is not None


def change_bytes(scratch: Path, data: bytes, changes: Callable[[int], list[int]]) -> None:
    for at in range(len(data)):
        for value in changes(data[at]):
            scratch.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            outcome(scratch)


@pytest.mark.parametrize("name", [SMALL[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL[1:])])
def test_some_changes_of_every_byte(scratch: Path, name: str) -> None:
    change_bytes(scratch, small_model(name), lambda byte: [byte ^ 1, byte ^ 128, 0, 255, (byte + 8) % 256])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_change_of_every_byte(scratch: Path, name: str) -> None:
    change_bytes(scratch, small_model(name), lambda byte: [value for value in range(256) if value != byte])


@given(data=strategies.wire_data())
def test_malformed_wire_data(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)
    outcome(scratch)


@pytest.mark.parametrize(
    "data",
    {
        "empty layers": chunk(100, b"") * 300_000,
        "empty old layers": chunk(2, b"") * 300_000,
        "older layers": chunk(2, chunk(1, b"")) * 300_000,
        "empty blobs": chunk(100, chunk(7, b"") * 300_000),
        "empty pieces": chunk(100, chunk(7, chunk(5, b"") * 300_000)),
        "alternating values": chunk(
            100, chunk(7, (encode.tag(5, 5) + bytes(4) + encode.tag(6, 5) + bytes(4)) * 200_000)
        ),
        "bottoms": chunk(100, chunk(3, b"") * 300_000),
        "long packed list": chunk(1, b"n") + chunk(4, b"\x7f" * 1_000_000),
        "dims": chunk(100, chunk(7, chunk(7, chunk(1, b"\x01" * 1_000_000)))),
        "unknown fields": chunk(100, number(999, 1) * 300_000),
        "groups": chunk(1, b"n") + (encode.tag(9, 3) + encode.tag(9, 4)) * 300_000,
        "wide text": chunk(1, "\U0001f600".encode() + b"a" * 900_000) * 20,
    }.items(),
    ids=lambda item: item[0],
)
def test_memory_is_bounded_by_the_file(scratch: Path, data: tuple[str, bytes]) -> None:
    scratch.write_bytes(data[1])
    tracemalloc.start()
    outcome(scratch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data[1]) + (16 << 20)
