"""What the layers of boxes share: steps of their lowering to ONNX, and random regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import OnnxBuilder

LOWEST_SCORE = np.finfo(np.float32).min
"""The score of a box that is out."""
_NO_LIMIT = 2**31 - 1


def part(g: OnnxBuilder, x: str, axis: int, start: int, stop: int) -> str:
    """``x[start:stop]`` along ``axis``."""
    return g.Slice(x, g.ints([start]), g.ints([stop]), g.ints([axis]))


def extent(g: OnnxBuilder, x: str, axis: int) -> str:
    """The extent of one axis, which is known when the model runs, as a 1-D value of one number."""
    return part(g, g.Shape(x), 0, axis, axis + 1)


def counted(g: OnnxBuilder, count: str) -> str:
    """0, 1, ... up to a number that is known when the model runs, int64."""
    return g.Range(g.const(np.int64(0)), g.Squeeze(count), g.const(np.int64(1)))


def keep_best(g: OnnxBuilder, scores: str, axis: int, limit: int) -> str:
    """The scores, all but the ``limit`` best along ``axis`` replaced by LOWEST."""
    values, places = best(g, scores, axis, limit)
    out = g.Expand(g.const(LOWEST_SCORE), g.Shape(scores))
    return g.ScatterElements(out, places, values, axis=axis)


def best(g: OnnxBuilder, scores: str, axis: int, limit: int) -> tuple[str, str]:
    """The ``limit`` best scores along ``axis`` and their places, best first; of equal ones the first."""
    count = extent(g, scores, axis)
    if limit >= 0:
        count = g.Min(count, g.ints([limit]))
    values, places = g.op("TopK", scores, count, outputs=2, axis=axis)
    return values, places


def suppress(g: OnnxBuilder, boxes: str, scores: str, overlap: float, lowest: float) -> str:
    """The scores, those of boxes that overlap a better one too much replaced by LOWEST.

    Args:
        g: The builder.
        boxes: (N, P, 4), two opposite corners each.
        scores: (N, C, P); each of the C is treated apart.
        overlap: More than this, as intersection over union, is too much.
        lowest: Scores up to this one are out beforehand.
    """
    limit, threshold = g.const(np.int64(_NO_LIMIT)), g.const(np.float32(min(overlap, 1)))
    # One more box, a point with a score just above the bound, always stays: OpenCV 5 dies of an empty index.
    least = np.nextafter(np.float32(lowest), np.float32(np.inf))
    boxes = g.Pad(boxes, g.ints([0, 0, 0, 0, 1, 0]), g.const(np.float32(0)))
    scores = g.Pad(scores, g.ints([0, 0, 0, 0, 0, 1]), g.const(least))
    kept = g.NonMaxSuppression(boxes, scores, limit, threshold, g.const(np.float32(lowest)))
    out = g.Expand(g.const(LOWEST_SCORE), g.Shape(scores))
    return part(g, g.ScatterND(out, kept, g.GatherND(scores, kept)), 2, 0, -1)


def found(g: OnnxBuilder, scores: str) -> str:
    """(K, rank) int64: the places of scores above LOWEST, in order."""
    return g.Transpose(g.NonZero(g.Cast(g.Greater(scores, g.const(LOWEST_SCORE)), to=1)))


def listed(g: OnnxBuilder, table: str, stays: str, none: str, images: str) -> str:
    """The rows of a table that stay, and where none does, those of another; never empty.

    Args:
        g: The builder.
        table: (M, columns).
        stays: (M) float32, 1 for a row that stays and 0 for others.
        none: (N, columns): the rows that tell of nothing.
        images: (1) int64: N.
    """
    nothing = g.Cast(g.Equal(g.reduce("Sum", stays, [0]), g.const(np.zeros(1, np.float32))), to=1)
    flags = g.Concat(stays, g.Expand(nothing, images), axis=0)
    return g.Gather(g.Concat(table, none, axis=0), g.Reshape(g.NonZero(flags), g.ints([-1])), axis=0)


def round_half_away(g: OnnxBuilder, x: str) -> str:
    """C's ``round``: halves go away from zero, where ONNX ``Round`` takes them to the even number."""
    size = g.Abs(x)
    whole = g.Floor(size)
    up = g.Cast(g.GreaterOrEqual(g.Sub(size, whole), g.const(np.float32(0.5))), to=1)
    return g.Mul(g.Sign(x), g.Add(whole, up))


def united(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4) with others (P, 4), float32; a box turned inside out has no area.

    Of two boxes whose areas are infinite it is NaN where they meet: it has no value.

    Source: ``JaccardOverlap`` in bbox_util.cpp of SSD.
    """
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    with np.errstate(invalid="ignore", over="ignore"):
        shared = np.where((high > low).all(axis=1), np.prod(high - low, axis=1), np.float32(0))
        own, others = (area(b) for b in (box, boxes))
        found: np.ndarray = np.divide(shared, own + others - shared, out=np.zeros_like(shared), where=shared != 0)
    return found


def area(boxes: np.ndarray) -> np.ndarray:
    """The area of boxes (..., 4), float32; infinite where it is larger than float32 can hold."""
    with np.errstate(invalid="ignore", over="ignore"):
        sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
        return np.asarray(np.where((sides > 0).all(axis=-1), np.prod(sides, axis=-1), np.float32(0)))


def apart(boxes: np.ndarray, overlap: float, eta: float = 1.0, most: int = -1) -> list[int]:
    """Places of the boxes that no better one that stays overlaps too much.

    Args:
        boxes: (P, 4) float32, two corners each, best first.
        overlap: More than this, as intersection over union, is too much.
        eta: Multiplies an ``overlap`` above 0.5 after each box that stays.
        most: How many may stay; -1 for all.

    Source: ``ApplyNMSFast`` in bbox_util.cpp of SSD.
    """
    kept: list[int] = []
    covered = np.zeros(len(boxes), np.float32)
    free = np.arange(len(boxes))
    while free.size and len(kept) != most:
        kept.append(int(free[0]))
        if eta < 1 and overlap > 0.5:
            overlap *= eta
        covered = np.maximum(covered, united(boxes[kept[-1]], boxes))
        behind = np.arange(kept[-1] + 1, len(boxes))
        free = behind[covered[behind] <= np.float32(overlap)]
    return kept


def best_first(scores: np.ndarray, most: int = -1) -> np.ndarray:
    """Places of scores (P), the best first and equal ones in their order; ``most`` of them, -1 for all."""
    order = np.argsort(-scores, kind="stable")
    return order if most < 0 else order[:most]


def random_regions(rng: np.random.Generator, shape: Shape, shapes: Sequence[Shape | None]) -> np.ndarray:
    """Regions (R, 5): image of the batch, left, top, right, bottom, in pixels."""
    regions = rng.uniform(0, 100, shape)
    regions[..., 0] = 0
    regions[..., 3:5] += regions[..., 1:3]
    return np.rint(regions)
