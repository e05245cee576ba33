"""What the engines are fed: recorded arrays, the user's own, or seeded random numbers that fit their use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import FormatError, ModelError, UnsupportedLayerError, UsageError
from bridge.limits.budget import BUDGET
from bridge.schema import Net, Shape, count, times
from bridge.verification.arrays import float32, held, read_array

Range = tuple[float, float]
_LAYERS = 4
"""How many times the largest layer, with what it reads, a proof takes of memory."""


def make_inputs(
    net: Net,
    *,
    given: Mapping[str, Any] | None = None,
    seed: int = 0,
    value_range: Range | None = None,
    draw: Callable[[np.random.Generator, Shape], Any] | None = None,
) -> dict[str, np.ndarray]:
    """One float32 array for each input of the net.

    Args:
        net: The net.
        given: Per input its extents, the array itself, or a file to read it from; those not
            named have the net's extents.
        seed: For the random numbers.
        value_range: Bounds of uniform random numbers; without it they are standard normal,
            or what the layer that reads them can take (indices, flags, regions).
        draw: Makes other numbers than standard normal ones, from a generator and a shape.

    Raises:
        ModelError: The extents of an input are not known, or the net cannot take them; then
            no number was drawn yet.
        UsageError: ``given`` names a blob that is no input.
    """
    given = given or {}
    if unknown := [name for name in given if name not in net.inputs]:
        raise UsageError(f"no input '{unknown[0]}'", where=net.where, hint=f"inputs: {', '.join(net.inputs) or 'none'}")
    given = {
        name: read_array(value, name, net.inputs[name]) if isinstance(value, Path) else value
        for name, value in given.items()
    }
    shapes = {name: _shape(net, name, given.get(name)) for name in net.inputs}
    check_shapes(net, shapes)
    return {
        name: np.asarray(given[name], np.float32)
        if isinstance(given.get(name), np.ndarray)
        else _random(net, name, shapes, np.random.default_rng([seed, position]), value_range, draw)
        for position, name in enumerate(net.inputs)
    }


def check_shapes(net: Net, shapes: Mapping[str, Shape]) -> None:
    """Demand that a net can take inputs of these shapes; what only an engine cannot do is for that to say.

    A proof keeps a few layers' values at a time: about 4 x the largest layer, with what it reads.

    Raises:
        ModelError: It cannot.
    """
    with contextlib.suppress(UnsupportedLayerError):
        tops = net.infer(shapes)
        layers = [
            sum(map(count, shapes)) + sum(count(tops[place.layer][place.top]) for place in reads if place.layer >= 0)
            for shapes, reads in zip(tops, net.flow.fed_reads(), strict=True)
        ]
        BUDGET.check(
            4 * (_LAYERS * max(layers, default=0) + sum(map(count, shapes.values()))), f"{net.where}: its blobs"
        )


def _shape(net: Net, name: str, given: Any) -> Shape:
    shape = given.shape if isinstance(given, np.ndarray) else given if given is not None else net.inputs[name]
    if shape is None:
        raise net.flow.shapeless(name)
    if any(not isinstance(extent, int) or extent < 0 for extent in shape):
        raise UsageError(f"input '{name}': {tuple(shape)} is not a list of extents", where=net.where)
    if 0 in shape:
        raise ModelError(
            f"input '{name}' would be {times(shape)}: it has no values",
            where=net.where,
            hint="each extent must be 1 or more",
        )
    return tuple(shape)


def _random(
    net: Net,
    name: str,
    shapes: Mapping[str, Shape],
    rng: np.random.Generator,
    value_range: Range | None,
    draw: Callable[[np.random.Generator, Shape], Any] | None,
) -> np.ndarray:
    for layer in net.layers:
        for position, bottom in enumerate(layer.bottoms):
            fill = layer.fill(position) if bottom == name else None
            if fill is not None:
                return np.asarray(fill(rng, shapes[name], [shapes.get(b) for b in layer.bottoms]), np.float32)
    if value_range is not None:
        return rng.uniform(*value_range, shapes[name]).astype(np.float32)
    if draw is not None:
        return np.asarray(draw(rng, shapes[name]), np.float32)
    return rng.standard_normal(shapes[name], np.float32)


# -- recorded ones ---------------------------------------------------------------------------


_HINT = "make one with --record"


class Recorded:
    """A file of recorded inputs and outputs.

    Keys are ``in:BLOB``, ``out:BLOB`` and ``blob:BLOB`` (the last value of that name), and
    ``top:LAYER:BLOB`` (what the layer wrote, where a later layer overwrites it).

    Args:
        path: The ``.npz`` file.

    Only the inputs are in memory. Every other array is read when it is looked up, after its size was checked
    against the budget.

    Attributes:
        inputs: Input blob -> float32 array.
        blobs: Blob -> its last value, float32.
        tops: ``LAYER:BLOB`` -> what that layer wrote, float32.
        keys: Every key of the file, in its order.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is no such archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        archive = held(path)
        if isinstance(archive, np.ndarray):
            raise FormatError("is a single array", expected="an archive (.npz)", where=self.name, hint=_HINT)
        self.keys: tuple[str, ...] = tuple(archive)
        parts = [(key, *key.partition(":")[::2]) for key in self.keys]
        homes: dict[str, dict[str, str]] = {"in": {}, "blob": {}, "out": {}, "top": {}}
        for key, kind, name in parts:
            if kind in homes and name:
                homes[kind][name] = key
        self.inputs = dict(_Arrays(archive, homes["in"], self.name))
        self.blobs: Mapping[str, np.ndarray] = _Arrays(archive, {**homes["blob"], **homes["out"]}, self.name)
        self.tops: Mapping[str, np.ndarray] = _Arrays(archive, homes["top"], self.name)
        if not self.inputs and not self.blobs:
            raise FormatError("has no key 'in:BLOB', 'out:BLOB' or 'blob:BLOB'", where=self.name, hint=_HINT)

    def check(self, net: Net) -> None:
        """Demand an array for each input of the net.

        Raises:
            UsageError: One is missing.
        """
        missing = [name for name in net.inputs if name not in self.inputs]
        if missing:
            have = ", ".join(self.inputs) or "none"
            raise UsageError(f"records no input '{missing[0]}', which the net has (recorded: {have})", where=self.name)


class _Arrays(Mapping[str, np.ndarray]):
    """Arrays of an archive, by names for their keys; each is read, as float32, whenever it is looked up."""

    def __init__(self, archive: Mapping[str, np.ndarray], keys: Mapping[str, str], where: str) -> None:
        self._archive, self._keys, self._where = archive, keys, where

    def __getitem__(self, name: str) -> np.ndarray:
        key = self._keys[name]
        return float32(self._archive[key], f"{self._where}: array '{key}'")

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def write_recorded(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their keys; the file appears whole or not at all."""
    from bridge.files.atomic import atomic

    with atomic(path) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def describe_inputs(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """One line per input: name, extents, range."""
    return [f"{name} {times(array.shape)}, {range_text(array)}" for name, array in arrays.items()]


def range_text(array: np.ndarray) -> str:
    """The smallest and the largest value, for messages."""
    finite = array[np.isfinite(array)]
    if not finite.size:
        return "no finite value" if array.size else "empty"
    text = f"{finite.min():.4g} to {finite.max():.4g}"
    return text if finite.size == array.size else f"{text}, {array.size - finite.size} not finite"


def parse_range(values: Sequence[float] | None) -> Range | None:
    """A pair of bounds, checked.

    Raises:
        UsageError: Not two numbers in order.
    """
    if values is None:
        return None
    if len(values) != 2 or not values[0] <= values[1] or not np.isfinite(values).all():
        raise UsageError(f"the range {tuple(values)} is not two numbers in order")
    if max(map(abs, values)) > float(np.finfo(np.float32).max):
        raise UsageError(f"the range {tuple(values)} is wider than float32, in which the net computes")
    return float(values[0]), float(values[1])
