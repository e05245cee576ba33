"""How far two correct engines may be apart: a bound that follows from what the layer computes.

Both engines compute in float32. Each operation rounds by at most the unit roundoff
``u = 2**-24`` of its result, and the engines do the operations in different orders.

**Sums** (convolution, inner product, average pooling, affine layers). The bound of a sum of k
terms is ``c sqrt(k) u`` times the sum of the terms' magnitudes. The constant c, 12, is so large that
two correct engines practically never differ by more. The layer itself computes the sum of the
magnitudes, from the magnitudes of its inputs and blobs. Example: 577 terms whose magnitudes add up
to 100 may differ by ``12 x 24 x 2**-24 x 100 = 0.0017``. If the sum of the magnitudes overflows, the
largest float32 takes its place, because a finite sum has no larger partial sums.

**Other layers**. A good algorithm gives the exact result of slightly wrong inputs. So the layer runs
again with each input moved by ``STEP`` of itself, up or down at random. The bound is the largest
movement of a result, plus a few roundings of the largest result. Some functions also round numbers
near 1 or near their largest input, such as ``1 + exp(x)``; the roundings are then relative to these
numbers. A function that divides by a sum of k terms (MVN, Normalize, Softmax) also has the error of
that sum, ``c sqrt(k) u`` of its result. A function that finds places between n pixels (Interp) rounds
places as large as n.

A layer whose partial sums are much larger than its result computes its own bound
(``rounding_bound``): LRN has running sums, and MVN the mean of a channel that is nearly constant.

**Several layers at once**, if the values between them are not known. Every value of every layer is
moved up or down at random by a standard deviation, which is ``1/c`` of the value's own bound. The bound
is three times the largest movement at the end.

Source: N. J. Higham and T. Mary, A new approach to probabilistic rounding error analysis,
2019; J. H. Wilkinson, Rounding errors in algebraic processes, 1963 (backward error);
D. S. Parker, Monte Carlo arithmetic, 1997.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from bridge.errors import BridgeError, UsageError, nearest
from bridge.schema import Layer, Net, Shape, count
from bridge.verification.compare import Limits, Relative, flat, slices_of
from bridge.verification.detections import moved as moved_rows
from bridge.verification.segments import Place, Runner, Segment

UNIT = 2.0**-24
"""Unit roundoff of float32."""
FACTOR = 12
"""c: each of two engines is within 6 standard deviations of the exact result."""
STEP = 64 * UNIT
"""How far an input of a layer that is no sum is moved, relative to the input."""
ROUNDINGS = 16
"""How often a layer that is no sum rounds numbers as large as its largest result."""
TINY = 2.0**-126
"""Smallest normal float32: below it engines may flush to zero."""
LARGEST = float(np.finfo(np.float32).max)
FEWEST = 4
"""The fewest terms that a sum counts as having: a runtime may multiply constants together, which rounds once more."""
WHOLE = 2.0**23
"""From here on every float32 is a whole number."""
SAMPLES = 3
"""How often several layers are run with moved results."""
SPREAD = 3
"""The factor of the largest movement, which among many values is about 4 standard deviations itself."""


class Bound(NamedTuple):
    """The largest difference that passes, a number per value or one for all, and why."""

    values: Limits
    why: str


_Tops: TypeAlias = "Mapping[Place, np.ndarray]"


class BoundedTops:
    """The bounds of a layer's tops on given inputs, by place; and the tops, computed when they are asked for."""

    def __init__(self, bounds: Mapping[Place, Bound], compute: Callable[[], _Tops]) -> None:
        self.bounds, self._compute = bounds, compute

    @functools.cached_property
    def tops(self) -> _Tops:
        """The values by place."""
        return self._compute()


Tolerance: TypeAlias = "float | Mapping[str, float | None] | None"


class Given(NamedTuple):
    """Tolerances that the user gave, as in :func:`numpy.allclose`."""

    rtol: float
    atol: float

    def bound(self, expected: np.ndarray) -> Bound:
        """``atol + rtol * |expected|``."""
        return Bound(Relative(self.rtol, self.atol, expected), f"as given: {self.atol:g} + {self.rtol:g} x |value|")


FALLBACK = Given(1e-4, 1e-5)
"""Where no engine can run single layers: what the project promises of an export.

The second number is relative to the largest value of the blob.
"""


def fallback(expected: np.ndarray) -> Given:
    """FALLBACK for an array: the second number times its largest finite magnitude."""
    return FALLBACK._replace(atol=FALLBACK.atol * _largest(expected))


HALF = Given(4e-3, 2e-3)
"""For float16, whose numbers have 11 bits: 8 and 4 of its roundings; the second is relative to the largest value."""


def half_given(expected: np.ndarray) -> Given:
    """HALF for an array: the second number times its largest magnitude, or 1."""
    return HALF._replace(atol=HALF.atol * max(1.0, _largest(expected)))


class Tolerances:
    """What the user gave: one pair for all tops, and pairs for single ones.

    Args:
        rtol, atol: A number, or numbers by blob name with ``""`` for all others; one that
            is not given counts as 0 where the other is.

    Raises:
        UsageError: One is no finite number from 0 on.
    """

    def __init__(self, rtol: Tolerance = None, atol: Tolerance = None) -> None:
        self._rtol, self._atol = (value if isinstance(value, Mapping) else {"": value} for value in (rtol, atol))
        for option, value in (*(("rtol", v) for v in self._rtol.values()), *(("atol", v) for v in self._atol.values())):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{option} {value:g} is negative, infinite or no number")

    @property
    def given(self) -> bool:
        """Whether the user gave any."""
        return any(value is not None for table in (self._rtol, self._atol) for value in table.values())

    def check(self, net: Net) -> None:
        """Demand that every blob with a tolerance of its own is one that a layer of the net writes.

        Raises:
            UsageError: One is not.
        """
        written = dict.fromkeys(top for layer in net.layers if not layer.is_input for top in layer.tops)
        for option, table in (("rtol", self._rtol), ("atol", self._atol)):
            for blob in table:
                if blob and blob not in written:
                    hint = nearest(blob, written)
                    raise UsageError(f"{option} for '{blob}': no layer writes that blob", where=net.where, hint=hint)

    def of(self, blob: str) -> Given | None:
        """The tolerance of a blob; ``None`` where it is to follow from the layer."""
        rtol, atol = (table.get(blob, table.get("")) for table in (self._rtol, self._atol))
        return None if rtol is None and atol is None else Given(rtol or 0.0, atol or 0.0)


def half_tolerances(net: Net, tops: Mapping[Place, np.ndarray]) -> Tolerances:
    """The tolerances for a model that computes in float16, by blob.

    Args:
        net: The net.
        tops: What its layers write in float16.
    """
    largest: dict[str, float | None] = {}
    for (index, top), array in tops.items():
        if index >= 0:
            blob = net.layers[index].tops[top]
            largest[blob] = max(largest.get(blob) or 0.0, half_given(array).atol)
    return Tolerances(HALF.rtol, largest)


def bounds(runner: Runner, part: Segment, values: Mapping[Place, np.ndarray], seed: int) -> BoundedTops:
    """What a segment makes of known values, and the bound of each top of its last layer.

    Args:
        runner: Runs pieces of the net.
        part: The segment.
        values: Of its inputs.
        seed: For the random movements.
    """
    rng = np.random.default_rng(seed)
    if len(part.layers) == 1:
        compute = functools.cache(lambda: runner.run(part, values))
        return BoundedTops(_own(runner, part.layers[0], values, compute, rng), compute)
    return _several(runner, part, values, rng)


def _several(runner: Runner, part: Segment, values: _Tops, rng: np.random.Generator) -> BoundedTops:
    """The bounds of the last of several layers: what moving each layer's result by a part of its bound changes there.

    All samples go through the layers side by side, so that only what a later layer reads is in memory.
    """
    last = part.layers[-1]
    clean, *samples = ({**values} for _ in range(1 + SAMPLES))
    readers = {place: index for index in part.layers for place in runner.reads[index]}
    moved: dict[Place, float] = {}
    for index in part.layers:
        clean.update(runner.run(runner.alone(index), clean))
        own = _own(runner, index, clean, lambda: clean, rng)
        for now in samples:
            for place, array in runner.run(runner.alone(index), now).items():
                bound = own[place].values
                now[place] = array = _shifted(array, _signs(rng, array.shape), bound, scale=1 / FACTOR)
                if index == last:
                    rows = runner.net.layers[index].detections(place.top)
                    apart = _distance(clean[place], array) if rows is None else moved_rows(rows, clean[place], array)
                    moved[place] = max(moved.get(place, 0.0), apart)
        for held in (clean, *samples):
            for place in [place for place in held if readers.get(place, -1) <= index < last]:
                del held[place]
    why = f"{SPREAD} x what rounding in the {len(part.layers)} layers from known values moves it"
    found = {place: Bound(SPREAD * distance + TINY, why) for place, distance in moved.items()}
    return BoundedTops(found, lambda: clean)


def _own(
    runner: Runner, index: int, known: _Tops, tops: Callable[[], _Tops], rng: np.random.Generator
) -> dict[Place, Bound]:
    """The bounds of one layer's tops on given inputs.

    Args:
        runner: Runs the layer.
        index: Its index.
        known: Has the values that it reads.
        tops: Gives what it writes; not called where the bounds do not follow from that.
        rng: For movements.
    """
    layer = runner.net.layers[index]
    bottoms = [known[place] for place in runner.reads[index]]
    derived = None
    if type(layer).rounding_bound is not Layer.rounding_bound:  # float64 takes twice as much memory
        with np.errstate(all="ignore"):
            derived = layer.rounding_bound(FACTOR * UNIT, *(bottom.astype(np.float64) for bottom in bottoms))
    if derived is not None:
        why = "what rounding of its sums, in the order in which engines compute them, changes"
        return {Place(index, top): Bound(derived + TINY, why) for top, _ in enumerate(layer.tops)}
    terms = layer.sum_terms(*(bottom.shape for bottom in bottoms))
    if terms is None:
        return _backward(runner, index, known, tops, rng)
    terms, positive = max(FEWEST, terms), layer.magnitudes()
    sums = _magnitude_sums(runner, index, known, positive)
    size = FACTOR * np.sqrt(terms) * UNIT
    why = f"{FACTOR} x sqrt({terms}) x 2^-24 x sum of |terms|, a sum of {terms} terms in another order"
    return {place: Bound(_scaled(size, sums.pop(place)), why) for place in list(sums)}


def _magnitude_sums(runner: Runner, index: int, known: _Tops, positive: Layer) -> dict[Place, np.ndarray]:
    """What a layer of positive blobs makes of the magnitudes of its inputs."""
    magnitudes = {place: np.abs(known[place]) for place in runner.reads[index]}
    return runner.run(runner.alone(index), magnitudes, lambda _: positive)


def _scaled(size: float, sums: np.ndarray) -> np.ndarray:
    """``size`` times the sums of magnitudes, and TINY, in float32: large arrays take their memory only once.

    Where a sum overflows, LARGEST stands for it: the sum itself is finite only if all numbers on the way to it are.
    """
    bound: np.ndarray = np.asarray(np.abs(sums))
    np.nan_to_num(bound, copy=False, nan=0, posinf=LARGEST)
    bound *= np.float32(size)
    bound += np.float32(TINY)
    return bound


def _backward(
    runner: Runner, index: int, known: _Tops, tops: Callable[[], _Tops], rng: np.random.Generator
) -> dict[Place, Bound]:
    layer, inputs = runner.net.layers[index], runner.alone(index).inputs
    moved: list[Mapping[Place, np.ndarray]] = []
    if not layer.chooses:
        with contextlib.suppress(BridgeError):
            moved = _moved(runner, index, known, tops, rng)
    unit = max(1.0, *(_largest(known[place]) for place in inputs)) if layer.rounds_near_one else 0.0
    scale = "1, the largest input and the largest value" if unit else "the largest value"
    roundings = _roundings(layer, [known[place].shape for place in runner.reads[index]])
    own = f"{roundings:.0f} x 2^-24 of {scale}"
    found = {}
    for place, array in _written(tops(), index):
        floor = roundings * UNIT * max(_largest(array), unit) + TINY
        if moved and not _counts(array):  # places and flags either are the same or are apart by much more
            distance = max(_distance(array, other[place]) for other in moved)
            found[place] = Bound(distance + floor, f"what moving each input by 2^-18 of itself changes, and {own}")
        else:
            found[place] = Bound(floor, own)
    return found


def _moved(
    runner: Runner, index: int, known: _Tops, tops: Callable[[], _Tops], rng: np.random.Generator
) -> list[_Tops]:
    """The tops of a layer after its inputs were moved; the other way as well if values were lost to infinity or NaN.

    Those after the movement are computed first: then the moved inputs are not in memory beside the tops.
    """
    part, layer = runner.alone(index), runner.net.layers[index]
    fixed = {place for position, place in enumerate(runner.reads[index]) if layer.fill(position)}
    values = {place: known[place] for place in part.inputs}
    signs = {place: _signs(rng, values[place].shape) for place in part.inputs if place not in fixed}
    found: list[_Tops] = []
    for way in (1, -1):
        shifted = {place: _shifted(values[place], way * sign, STEP, relative=True) for place, sign in signs.items()}
        found.append(runner.run(part, {**values, **shifted}))
        shifted.clear()
        if not any(_lost(array, found[-1][place]) for place, array in _written(tops(), index)):
            break
    return found


def _written(values: _Tops, index: int) -> list[tuple[Place, np.ndarray]]:
    """The tops of one layer among values."""
    return [(place, array) for place, array in values.items() if place.layer == index]


def _lost(array: np.ndarray, moved: np.ndarray) -> bool:
    """Whether a finite value is finite no more."""
    x, y = array.reshape(-1), moved.reshape(-1)
    return any((np.isfinite(x[part]) & ~np.isfinite(y[part])).any() for part in slices_of(x))


def _roundings(layer: Layer, bottoms: Sequence[Shape]) -> float:
    """How often a layer that is no sum rounds numbers as large as its largest result."""
    if not bottoms:
        return ROUNDINGS
    summed = count([bottoms[0][axis] for axis in layer.summed_axes(len(bottoms[0]))])
    return max(ROUNDINGS * layer.position_extent(*bottoms), FACTOR * math.sqrt(summed))


def _distance(a: np.ndarray, b: np.ndarray | None) -> float:
    """The largest difference where both are finite; none of another shape."""
    if b is None or a.shape != b.shape:
        return 0.0
    x, y, largest = a.reshape(-1), b.reshape(-1), 0.0
    for part in slices_of(x):
        with np.errstate(invalid="ignore"):
            difference = np.abs(x[part].astype(np.float64) - y[part])
        largest = max(largest, float(difference[np.isfinite(difference)].max(initial=0)))
    return largest


def _signs(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """-1 or 1 for each value."""
    signs = rng.integers(0, 2, shape, np.int8)
    return np.asarray(2 * signs - 1, np.int8)


def _shifted(
    array: np.ndarray, signs: np.ndarray, size: Limits, *, scale: float = 1, relative: bool = False
) -> np.ndarray:
    """The array moved, as float32; what is finite stays finite.

    Args:
        array: The values.
        signs: Up or down, for each.
        size: How far each is moved.
        scale: A factor of that.
        relative: Whether that is relative to the value itself.
    """
    moved = np.empty(array.shape, np.float32)
    sizes = size if isinstance(size, Relative) else flat(size, array.shape)
    x, y, ways = array.reshape(-1), moved.reshape(-1), signs.reshape(-1)
    for part in slices_of(x):
        values = x[part].astype(np.float64)
        steps = ways[part] * (sizes[part] * scale)
        shifted = values + (values * steps if relative else steps)
        y[part] = np.where(np.isfinite(values), np.clip(shifted, -LARGEST, LARGEST), values)
    return moved


def _counts(array: np.ndarray) -> bool:
    """Whether all values may be places or flags."""
    values = array.reshape(-1)
    return all((values[part] == np.rint(values[part])).all() for part in slices_of(values)) and _largest(array) < WHOLE


def _largest(array: np.ndarray) -> float:
    """The largest finite magnitude."""
    values, largest = array.reshape(-1), 0.0
    for part in slices_of(values):
        some = np.abs(values[part])
        largest = max(largest, float(some.max(initial=0, where=np.isfinite(some))))
    return largest
