"""Detections compared as detections: rows are matched, in whatever order they stand.

A detector puts out a row for each box that it finds. Two sound engines may write rows of equal score in another
order, and fill the rest with rows that say nothing, as OpenCV does. So each row is matched with one of the same image
and label whose score and box are within the bound. A row on one side only is excused where a rounding decides: its
score is at the threshold, it overlaps a better box by as much as is just allowed, both boxes are infinite, or the list
of the image is full and ends there. Whatever else has no counterpart is a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from bridge.layers.boxes import area, united
from bridge.schema.hooks import DetectionRows
from bridge.verification.compare import Limits, difference, metrics
from bridge.verification.results import Metrics, plural

ALIKE = 0.5
"""Boxes that overlap by more than this, as intersection over union, are of one object."""


def row_metrics(layout: DetectionRows, a: np.ndarray, b: np.ndarray, bound: Limits) -> Metrics:
    """How far two arrays of detections are apart, as :func:`bridge.verification.compare.metrics` tells it.

    Args:
        layout: What the columns are, and how the layer chose the rows.
        a: (..., rows, columns) float32.
        b: As many columns; the number of rows may be another.
        bound: The largest difference that passes, one number or one per value of ``b``.
    """
    matching = _Matching(layout, a, b, bound)
    left = [row for row in matching.single if not row.excused]
    places = np.array([i for i, _ in matching.pairs], int)
    partners = np.array([j for _, j in matching.pairs], int)
    found = metrics(matching.a[places], matching.b[partners], matching.bound[partners])
    index = found.index
    if index is not None:
        index = (*(0,) * (a.ndim - 2), int(matching.rows[places[index[0]]]), index[1])
    return replace(
        found,
        count=matching.a.size,
        mismatches=found.mismatches + len(left) * a.shape[-1],
        index=None if left else index,
        ratio=max(found.ratio, np.inf if left else 0),
        rows=matching.text(left, found),
    )


def moved(layout: DetectionRows, a: np.ndarray, b: np.ndarray) -> float:
    """How far the rows of ``a`` are from those of ``b`` that are of the same object; rows that come and go are none."""
    keys = list(layout.keys)
    b = b.copy()
    b[..., keys] = np.rint(b[..., keys])  # what moves a score moves the numbers of image and label as well
    matching = _Matching(layout, a, b, 0.0)
    columns = layout.compared
    distances = [difference(matching.a[i][columns], matching.b[j][columns]) for i, j in matching.pairs]
    return max((float(d[np.isfinite(d)].max(initial=0)) for d in distances), default=0.0)


class _Single:
    """A row that has no counterpart."""

    def __init__(self, row: np.ndarray, side: int) -> None:
        self.row, self.side, self.excused = row, side, False


class _Matching:
    """The rows of two sides, matched.

    Attributes:
        a, b: The rows that say something.
        rows: The place of each of ``a`` in its array.
        bound: For each value of ``b``.
        pairs: Places in ``a`` and ``b`` of rows that belong together, within the bound or not.
        single: Rows that belong to none.
    """

    def __init__(self, layout: DetectionRows, a: np.ndarray, b: np.ndarray, bound: Limits) -> None:
        self.layout = layout
        limits = np.broadcast_to(np.asarray(bound, np.float64), b.shape).reshape(-1, b.shape[-1])
        self.a, self.rows = _real(layout, a)
        self.b, places = _real(layout, b)
        self.bound = limits[places]
        self.pairs: list[tuple[int, int]] = []
        left: tuple[list[int], list[int]] = ([], [])
        groups = [_groups(layout, side) for side in (self.a, self.b)]
        for key in dict.fromkeys([*groups[0], *groups[1]]):
            for found, more in zip(left, self._match(groups[0].get(key, []), groups[1].get(key, [])), strict=True):
                found += more
        self.single = [_Single(self.a[i], 0) for i in left[0]] + [_Single(self.b[j], 1) for j in left[1]]
        self._excuse()

    def _match(self, ours: Sequence[int], theirs: Sequence[int]) -> tuple[list[int], list[int]]:
        """Pair the rows of one image and label; the places of those that are left."""
        free = dict.fromkeys(theirs)
        later = []
        for i in ours:
            near = self._within(i, list(free))
            if near is None:
                later.append(i)
            else:
                self.pairs.append((i, near))
                del free[near]
        left = []
        for i in later:  # rows of one object, which differ
            near = self._alike(i, list(free))
            if near is None:
                left.append(i)
            else:
                self.pairs.append((i, near))
                del free[near]
        return left, list(free)

    def _within(self, i: int, candidates: list[int]) -> int | None:
        """The first of the candidates that is within the bound."""
        columns = self.layout.compared
        for start in range(0, len(candidates), 64):  # the rows stand in nearly the same order
            part = candidates[start : start + 64]
            apart = difference(self.a[i][columns], self.b[part][:, columns])
            fits = np.flatnonzero((apart <= self.bound[part][:, columns]).all(axis=1))
            if fits.size:
                return part[int(fits[0])]
        return None

    def _alike(self, i: int, candidates: list[int]) -> int | None:
        """The candidate whose box is most like a row's, or whose score is the same."""
        layout, others = self.layout, self.b[candidates]
        if not candidates or not _finite(layout.boxes(self.a[i])):
            return None
        overlaps = np.nan_to_num(united(layout.boxes(self.a[i]), layout.boxes(others)))
        best = int(np.argmax(overlaps))
        same = np.flatnonzero(self._same_score(self.a[i], candidates))
        if overlaps[best] > ALIKE:
            return candidates[best]
        return candidates[int(same[0])] if same.size else None

    def _same_score(self, row: np.ndarray, candidates: list[int]) -> np.ndarray:
        column = self.layout.score
        near: np.ndarray = np.abs(self.b[candidates][:, column] - row[column]) <= self.bound[candidates][:, column]
        return near

    # -- rows on one side only ---------------------------------------------------------------------

    def _excuse(self) -> None:
        """Excuse single rows, the better ones first: one that is excused may suppress others."""
        slack = float(self.bound.max(initial=0)) + 1e-6
        for single in sorted(self.single, key=lambda single: -float(single.row[self.layout.score])):
            other = self.b if single.side == 0 else self.a
            own = np.equal(single.row[list(self.layout.keys)], np.rint(single.row[list(self.layout.keys)])).all()
            single.excused = bool(own) and (
                self._at_threshold(single.row, slack)
                or self._at_end(single.row, other, slack)
                or self._suppressed(single, other, slack)
            )

    def _at_threshold(self, row: np.ndarray, slack: float) -> bool:
        return abs(float(row[self.layout.score]) - self.layout.least) <= slack

    def _at_end(self, row: np.ndarray, other: np.ndarray, slack: float) -> bool:
        """Whether the image's list is full on the other side, and the row is no better than its last."""
        scores = other[other[:, 0] == row[0], self.layout.score]
        most = self.layout.most
        return 0 < most <= scores.size and float(row[self.layout.score]) <= float(scores.min(initial=np.inf)) + slack

    def _suppressed(self, single: _Single, other: np.ndarray, slack: float) -> bool:
        """Whether a better row there overlaps it by just as much as is allowed, or is single itself and excused."""
        layout = self.layout
        keys = [0] if layout.across_labels else list(layout.keys)
        rivals = other[(other[:, keys] == single.row[keys]).all(axis=1)]
        rivals = rivals[rivals[:, layout.score] >= single.row[layout.score] - slack]
        boxes, own = layout.boxes(rivals), layout.boxes(single.row)
        if not _finite(own) and not _finite(boxes).all():
            return True  # how much two infinite boxes overlap has no value, and each runtime decides for itself
        overlaps = united(own, boxes)
        if (np.abs(overlaps - layout.overlap) <= slack / max(1e-3, _side(own))).any():
            return True
        known = [s.row for s in self.single if s.excused and s.side != single.side]
        return any(
            overlap > layout.overlap and any(np.array_equal(rival, row) for row in known)
            for overlap, rival in zip(overlaps, rivals, strict=True)
        )

    def _distances(self) -> tuple[float, float]:
        """The largest difference of scores, and of corners, between matched rows."""
        places, partners = (np.array(side, int) for side in zip(*self.pairs, strict=True))
        apart = difference(self.a[places], self.b[partners])
        return float(apart[:, self.layout.score].max()), float(self.layout.boxes(apart).max())

    # -- in words ----------------------------------------------------------------------------------

    def text(self, left: Sequence[_Single], found: Metrics) -> str:
        """What was compared, and what has no counterpart."""
        excused = sum(single.excused for single in self.single)
        parts = [f"{plural(len(self.a), 'detection')} against {len(self.b)}, matched in any order without padding"]
        if found.max_abs:
            score, box = self._distances()
            parts.append(f"matched ones at most {score:.3g} apart in score, {box:.3g} in a corner")
        if excused:
            parts.append(f"{excused} on one side only, where rounding decides at a threshold")
        if left:
            side = "first" if left[0].side == 0 else "second"
            more = f", and {len(left) - 1} more on one side only" if len(left) > 1 else ""
            parts.append(f"the {side} side alone has {_shown(self.layout, left[0].row)}{more}")
        return "; ".join(parts)


def _shown(layout: DetectionRows, row: np.ndarray) -> str:
    image, label = (f"{row[column]:g}" for column in layout.keys)
    box = " ".join(f"{value:.4g}" for value in layout.boxes(row))
    return f"image {image}, label {label}, score {row[layout.score]:.4g}, box {box}"


def _finite(boxes: np.ndarray) -> np.ndarray:
    """Which boxes (..., 4) have finite corners and a finite area."""
    return np.asarray(np.isfinite(boxes).all(axis=-1) & np.isfinite(area(boxes)))


def _side(box: np.ndarray) -> float:
    """The shorter side of a box."""
    return float(np.nan_to_num((box[2:] - box[:2]).min()))


def _real(layout: DetectionRows, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are no padding, and their places: padding is all -1 behind the image, or all 0."""
    rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
    empty = (rows[:, 1:] == -1).all(axis=1) & (rows[:, 0] == np.rint(rows[:, 0]))
    places = np.flatnonzero(~(empty | (rows == 0).all(axis=1)))
    return rows[places], places


def _groups(layout: DetectionRows, rows: np.ndarray) -> dict[tuple[float, ...], list[int]]:
    """Places of rows by image and label, the best first."""
    groups: dict[tuple[float, ...], list[int]] = {}
    order: Iterable[int] = np.argsort(-rows[:, layout.score], kind="stable")
    for place in order:
        groups.setdefault(tuple(rows[place, list(layout.keys)].tolist()), []).append(int(place))
    return groups
