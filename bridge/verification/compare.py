"""Comparing two arrays: bit by bit for weights, against a bound for outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bridge.schema import Shape, count
from bridge.verification.results import RATIOS, ULPS, Metrics

CHUNK = 1 << 20
"""Bytes that are compared at once: they stay in the cache."""
VALUES = 1 << 15
"""Values that are measured at once; a dozen arrays of float64 are made of them."""


@dataclass(frozen=True)
class BitDifference:
    """Where two arrays of one type differ in their bits.

    Attributes:
        index: Place of the first value that differs.
        values: The two values there, as text.
        count: How many values differ.
        ulps: Distance of the two values; ``None`` if one is NaN.
        spread: How many values are equal, and how many are apart by each of ULPS.
    """

    index: Shape
    values: tuple[str, str]
    count: int
    ulps: int | None
    spread: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Relative:
    """A bound ``atol + rtol * |expected|``, 0 for what is not finite, made of a part of the values at a time.

    As a whole array of float64 it would take twice as much memory as the values.
    """

    rtol: float
    atol: float
    expected: np.ndarray

    def __getitem__(self, part: slice) -> np.ndarray:
        """The bound of a part of the values, which count as one row."""
        with np.errstate(invalid="ignore"):
            made = self.atol + self.rtol * np.abs(np.asarray(self.expected.reshape(-1)[part], np.float64))
        return np.nan_to_num(made, copy=False, nan=0, posinf=0)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].reshape(self.expected.shape).astype(dtype or np.float64, copy=False)


Limits: TypeAlias = "np.ndarray | float | Relative"
"""The largest difference that passes: one number, or one per value."""


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one type hold the same bits, in whatever shapes.

    -0.0 is not 0.0 here, and NaNs are the same only with the same payload.
    """
    if a.size != b.size:
        return False
    x, y = _bytes(a), _bytes(b)
    return not any((x[i : i + CHUNK] != y[i : i + CHUNK]).any() for i in range(0, x.size, CHUNK))


def bit_difference(a: np.ndarray, b: np.ndarray) -> BitDifference | None:
    """The first difference in bits, or ``None``.

    Args:
        a: An array of floats; the index is told in its shape.
        b: One of the same type and count.
    """
    if same_bits(a, b):
        return None
    x, y = (_ordered(array.reshape(-1)) for array in (a, b))
    places = np.flatnonzero(x != y)
    first = int(places[0])
    pair = np.asarray([a.reshape(-1)[first], b.reshape(-1)[first]])
    ulps = None if np.isnan(pair).any() else abs(int(x[first]) - int(y[first]))
    index = tuple(int(i) for i in np.unravel_index(first, a.shape))
    distances = np.abs(x[places].astype(np.float64) - y[places])
    return BitDifference(index, _texts(pair), len(places), ulps, _spread(distances, ULPS, x.size))


def metrics(a: np.ndarray, b: np.ndarray, bound: Limits) -> Metrics:
    """How far ``a`` and ``b`` are apart, and where against ``bound``.

    NaN equals NaN and infinity equals infinity of the same sign, at the same place; NaN or
    infinity against anything else is an infinite difference.

    Args:
        a: float32 array.
        b: Another of the same shape.
        bound: The largest difference that passes, one number or one per value.
    """
    if a.size == 0 or same_bits(np.asarray(a, np.float32), np.asarray(b, np.float32)):
        return Metrics(count=a.size)
    x, y = a.reshape(-1), b.reshape(-1)
    limits = bound if isinstance(bound, Relative) else flat(bound, a.shape)
    measured = _Measured(a.size)
    with np.errstate(all="ignore"):
        for part in slices_of(x):
            measured.add(part.start, x[part], y[part], limits[part])
    return measured.metrics(a.shape)


def flat(values: np.ndarray | float, shape: Shape) -> np.ndarray:
    """One number, or an array, as a row of as many as an array of that shape has; a view."""
    # of one number, reshape would make as many as there are values
    return np.broadcast_to(values, shape if np.ndim(values) else count(shape)).reshape(-1)


def slices_of(row: np.ndarray) -> Iterator[slice]:
    """Slices of a row that are small beside it: what is made of one at a time takes little memory."""
    return (slice(start, start + VALUES) for start in range(0, row.size, VALUES))


class _Measured:
    """What is measured of two arrays, a part after the other: whole arrays of float64 would take much memory."""

    def __init__(self, size: int) -> None:
        self.size, self.mismatches = size, 0
        self.max_abs = self.max_rel = self.squares = self.peak = 0.0
        self.max_ulps = 0
        self.products = np.zeros(3)  # of x with itself, of y with itself, of x with y
        self.spread = np.zeros(len(RATIOS) + 1, np.int64)
        self.worst: tuple[float, int, float, float, float] = (-1.0, 0, 0.0, 0.0, 0.0)

    def add(self, start: int, a: np.ndarray, b: np.ndarray, limits: np.ndarray) -> None:
        """Measure a part of the flat arrays, which begins at ``start``."""
        x, y, limits = (np.asarray(array, np.float64) for array in (a, b, limits))
        apart = difference(x, y)
        relative = apart / np.fmax(np.abs(x), np.abs(y))
        ratio = np.nan_to_num(np.where(apart > 0, apart / limits, 0), nan=np.inf)
        place = int(np.argmax(ratio))
        if ratio[place] > self.worst[0]:
            self.worst = (float(ratio[place]), start + place, float(x[place]), float(y[place]), float(limits[place]))
        self.mismatches += int(np.count_nonzero(apart > limits))
        self.max_abs = max(self.max_abs, float(apart.max()))
        relative = np.where(apart > 0, np.nan_to_num(relative, nan=np.inf), 0)
        self.max_rel = max(self.max_rel, float(relative.max()))
        self.max_ulps = max(self.max_ulps, _max_ulps(a, b))
        self.spread += np.asarray(_spread(ratio[ratio > 0], RATIOS, ratio.size))
        self.squares += float((apart**2).sum())
        self.peak = max(self.peak, float(np.abs(x[np.isfinite(x)]).max(initial=0)))
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        self.products += (x @ x, y @ y, x @ y)

    def metrics(self, shape: Shape) -> Metrics:
        """All of it."""
        ratio, worst, x, y, limit = self.worst
        place = np.unravel_index(worst, shape)
        return Metrics(
            count=self.size,
            mismatches=self.mismatches,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            max_ulps=self.max_ulps,
            cosine=self._cosine(),
            psnr=self._psnr(),
            index=tuple(int(i) for i in place) if self.max_abs > 0 else None,
            a=x,
            b=y,
            bound=limit,
            ratio=ratio,
            spread=tuple(int(number) for number in self.spread),
        )

    def _cosine(self) -> float:
        xx, yy, xy = self.products
        lengths = float(np.sqrt(xx)) * float(np.sqrt(yy))
        if not lengths:
            return 1.0 if not xx and not yy else 0.0
        return min(1.0, float(xy) / lengths)

    def _psnr(self) -> float:
        root = float(np.sqrt(self.squares / self.size))
        if not root:
            return float("inf")
        return 20 * float(np.log10(self.peak / root)) if self.peak and np.isfinite(root) else float("-inf")


def _spread(distances: np.ndarray, classes: Sequence[float], total: int) -> tuple[int, ...]:
    """How many of ``total`` values are equal, and how many of the others' distances lie in each class."""
    counts = np.bincount(np.searchsorted(classes, distances.reshape(-1)), minlength=len(classes))
    return (total - distances.size, *map(int, counts))


def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Absolute differences; 0 where both are NaN or the same infinity, infinite where one is not finite."""
    with np.errstate(invalid="ignore"):
        found = np.abs(x - y)
    alike = (x == y) | (np.isnan(x) & np.isnan(y))
    return np.where(alike, 0, np.where(np.isnan(found), np.inf, found))


def _max_ulps(a: np.ndarray, b: np.ndarray) -> int:
    x, y = np.asarray(a, np.float32).reshape(-1), np.asarray(b, np.float32).reshape(-1)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return 0
    return int(np.abs(_ordered(x[finite]) - _ordered(y[finite])).max())


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _ordered(flat: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats, one apart for neighbours; other bits, other integer."""
    kind: Any = np.dtype(f"i{flat.dtype.itemsize}")
    bits = np.ascontiguousarray(flat).view(kind)
    if kind.itemsize < 8:
        bits = bits.astype(np.int64)
    lowest = -(1 << (8 * kind.itemsize - 1))
    # Negative floats sort backwards; -0.0 comes right below 0.0, so that it is not the same.
    ordered: np.ndarray = np.where(bits < 0, lowest - bits - 1, bits)
    return ordered


def _texts(pair: np.ndarray) -> tuple[str, str]:
    """The two values in as many digits as tell them apart, or else with their bits."""
    a, b = str(pair[0]), str(pair[1])
    if a != b:
        return a, b
    digits = pair.dtype.itemsize * 2
    hexes = [f"0x{int(bits):0{digits}x}" for bits in pair.view(f"u{pair.dtype.itemsize}")]
    return f"{a} ({hexes[0]})", f"{b} ({hexes[1]})"
