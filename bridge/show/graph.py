"""A graph as a drawing: boxes in ranks, edges between them, frames around groups.

Every edge points down. A box stands one rank below the lowest box that it reads. An edge over several ranks keeps a
lane free on its way. The order in a rank and the places follow from the neighbours' mean, in a few sweeps.

Source: Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures", 1981.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bridge.show.html import Markup, join, tag

_LETTER, _BOLD, _LINE, _PAD = 6.6, 7.6, 16.0, 10.0
"""Width of a letter, of a bold one, height of a line, and the space around a box's text."""
_ACROSS, _DOWN, _LANE = 22.0, 30.0, 14.0
"""Space between boxes, between ranks, and the width of an edge that passes a rank."""
_MARGIN, _SWEEPS = 24.0, 12

COLOURS = {"": "#eef1f4", "input": "#d9efdf", "weights": "#d6e4f5"}
"""The kinds of boxes, and what they are filled with."""
_TEXT, _SOFT, _EDGE, _FRAME = "#1c2733", "#5b6570", "#8a97a5", "#b0762b"


@dataclass(frozen=True)
class Box:
    """A box before it has a place.

    Attributes:
        lines: Its text; the first line stands out.
        reads: Indices of the boxes that it reads, all smaller than its own.
        kind: One of :data:`COLOURS`.
    """

    lines: tuple[str, ...]
    reads: tuple[int, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Frame:
    """A frame around boxes.

    Attributes:
        boxes: Their indices.
        title: What stands above them.
    """

    boxes: tuple[int, ...]
    title: str


@dataclass
class Spot:
    """A box, or an edge's lane through a rank, with its place.

    Attributes:
        width, height: In pixels.
        box: The box; ``None`` for a lane.
        x, y: The middle of its upper side.
        above, below: Its neighbours.
    """

    width: float
    height: float
    box: Box | None = None
    x: float = 0.0
    y: float = 0.0
    above: list[Spot] = field(default_factory=list)
    below: list[Spot] = field(default_factory=list)


class Drawing:
    """Boxes with places.

    Args:
        boxes: The boxes; each reads earlier ones only.
        frames: Frames around some of them.

    Attributes:
        boxes: The placed boxes, in the order given.
        edges: For each edge the places that it goes through, from above.
        frames: For each frame its title, and left, top, right and bottom.
        width, height: Of the whole drawing, in pixels.
    """

    def __init__(self, boxes: Sequence[Box], frames: Sequence[Frame] = ()) -> None:
        self.boxes = [_sized(box) for box in boxes]
        self.edges: list[list[Spot]] = []
        ranks = self._ranks(boxes)
        for _ in range(_SWEEPS // 3):
            _order(ranks, up=False)
            _order(ranks, up=True)
        titled = {min(frame.boxes) for frame in frames}
        self._heights(ranks, {id(self.boxes[index]) for index in titled})
        for sweep in range(_SWEEPS):
            _spread(ranks, up=sweep % 2 == 1)
        self._settle(ranks)
        self.frames = [(frame.title, *self._around(frame)) for frame in frames]
        self._fit()

    def _ranks(self, boxes: Sequence[Box]) -> list[list[Spot]]:
        """The boxes by rank, with lanes for the edges that pass a rank."""
        depth: list[int] = []
        for box in boxes:
            depth.append(1 + max((depth[index] for index in box.reads), default=-1))
        ranks: list[list[Spot]] = [[] for _ in range(max(depth, default=-1) + 1)]
        for place, rank in zip(self.boxes, depth, strict=True):
            ranks[rank].append(place)
        for index, box in enumerate(boxes):
            for read in dict.fromkeys(box.reads):
                lanes = [Spot(_LANE, 0.0) for _ in range(depth[read] + 1, depth[index])]
                for rank, lane in enumerate(lanes, depth[read] + 1):
                    ranks[rank].append(lane)
                path = [self.boxes[read], *lanes, self.boxes[index]]
                for upper, lower in itertools.pairwise(path):
                    upper.below.append(lower)
                    lower.above.append(upper)
                self.edges.append(path)
        return ranks

    def _heights(self, ranks: list[list[Spot]], titled: set[int]) -> None:
        y = _MARGIN
        for rank in ranks:
            if any(id(place) in titled for place in rank):
                y += _LINE + _PAD  # room for a frame's title
            tallest = max(place.height for place in rank)
            for place in rank:
                place.y = y + (tallest - place.height) / 2 if place.box else y
                place.height = place.height if place.box else tallest
            y += tallest + _DOWN

    def _settle(self, ranks: list[list[Spot]]) -> None:
        left = min((place.x - place.width / 2 for rank in ranks for place in rank), default=0.0)
        for rank in ranks:
            for place in rank:
                place.x += _MARGIN - left

    def _around(self, frame: Frame) -> tuple[float, float, float, float]:
        """The sides of a frame: around its boxes, and around the lanes of the edges between them."""
        inside = {id(self.boxes[index]) for index in frame.boxes}
        held = [self.boxes[index] for index in frame.boxes]
        first, last = min(place.y for place in held), max(place.y for place in held)
        own = [path for path in self.edges if {id(path[0]), id(path[-1])} & inside]
        held += [lane for path in own for lane in path[1:-1] if first <= lane.y <= last]
        left = min(place.x - place.width / 2 for place in held) - _PAD
        right = max(place.x + place.width / 2 for place in held) + _PAD
        top = min(place.y for place in held) - _LINE - _PAD / 2
        return (
            left,
            top,
            max(right, left + len(frame.title) * _BOLD + 2 * _PAD),
            (max(place.y + place.height for place in held) + _PAD),
        )

    def _fit(self) -> None:
        """Shift everything so that the frames are inside too, and measure the drawing."""
        lefts = [place.x - place.width / 2 for place in self.boxes] + [frame[1] for frame in self.frames]
        shift = max(0.0, _MARGIN / 2 - min(lefts, default=0.0))
        for place in {id(place): place for path in [*self.edges, self.boxes] for place in path}.values():
            place.x += shift
        self.frames = [(title, a + shift, b, c + shift, d) for title, a, b, c, d in self.frames]
        rights = [place.x + place.width / 2 for path in [*self.edges, self.boxes] for place in path]
        bottoms = [place.y + place.height for place in self.boxes] + [frame[4] for frame in self.frames]
        self.width = max([*rights, *(frame[3] for frame in self.frames)], default=0.0) + _MARGIN
        self.height = max(bottoms, default=0.0) + _MARGIN

    def svg(self) -> Markup:
        """The drawing as an SVG element, which loads nothing."""
        return tag(
            "svg",
            tag("rect", width="100%", height="100%", fill="#ffffff", rx=8),
            ([_edge_svg(path), "\n"] for path in self.edges),
            ([_frame_svg(frame), "\n"] for frame in self.frames),
            ([_box_svg(place), "\n"] for place in self.boxes),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {self.width:.0f} {self.height:.0f}",
            width=f"{self.width:.0f}",
            height=f"{self.height:.0f}",
            font_family="system-ui, sans-serif",
            font_size=12,
            style="max-width: 100%; height: auto",
            role="img",
        )


def _sized(box: Box) -> Spot:
    widths = [len(line) * (_LETTER if number else _BOLD) for number, line in enumerate(box.lines)]
    width = max(widths, default=0.0) + 2 * _PAD
    return Spot(width, len(box.lines) * _LINE + _PAD, box)


def _order(ranks: list[list[Spot]], up: bool) -> None:
    """Order each rank by the mean place of its neighbours in the rank before it."""
    for rank in reversed(ranks[:-1]) if up else ranks[1:]:
        others = ranks[ranks.index(rank) + (1 if up else -1)]
        places = {id(place): index for index, place in enumerate(others)}
        own = {id(place): index for index, place in enumerate(rank)}

        def mean(place: Spot, places: dict[int, int] = places, own: dict[int, int] = own) -> float:
            near = [places[id(other)] for other in (place.below if up else place.above) if id(other) in places]
            return sum(near) / len(near) if near else float(own[id(place)])

        rank.sort(key=mean)


def _spread(ranks: list[list[Spot]], up: bool) -> None:
    """Move each rank to the mean of its neighbours, and apart where boxes would overlap."""
    for rank in reversed(ranks) if up else ranks:
        for place in rank:
            near = (place.below if up else place.above) or place.above or place.below
            if near:
                place.x = sum(other.x for other in near) / len(near)
        wanted = sum(place.x for place in rank) / len(rank)
        for left, right in itertools.pairwise(rank):
            right.x = max(right.x, left.x + (left.width + right.width) / 2 + _ACROSS)
        shift = wanted - sum(place.x for place in rank) / len(rank)
        for place in rank:
            place.x += shift


def points(path: Sequence[Spot]) -> Iterator[tuple[float, float]]:
    """The points of an edge: the lower side of a box, both ends of each lane, the upper side of the next box."""
    yield path[0].x, path[0].y + path[0].height
    for lane in path[1:-1]:
        yield lane.x, lane.y
        yield lane.x, lane.y + lane.height
    yield path[-1].x, path[-1].y


def _edge_svg(path: Sequence[Spot]) -> Markup:
    (x, y), *rest = points(path)
    parts = [f"M{x:.1f} {y:.1f}"]
    for nx, ny in rest:
        middle = (y + ny) / 2
        parts.append(
            f"L{nx:.1f} {ny:.1f}" if nx == x else f"C{x:.1f} {middle:.1f} {nx:.1f} {middle:.1f} {nx:.1f} {ny:.1f}"
        )
        x, y = nx, ny
    parts.append("m-4 -7 l4 7 l4 -7")
    return tag("path", d=" ".join(parts), fill="none", stroke=_EDGE, stroke_width=1.3)


def _box_svg(place: Spot) -> Markup:
    box = place.box or Box(())
    left = place.x - place.width / 2
    lines = (
        tag(
            "text",
            line,
            x=f"{place.x:.1f}",
            y=f"{place.y + _PAD / 2 + _LINE * (number + 0.75):.1f}",
            text_anchor="middle",
            fill=_SOFT if number else _TEXT,
            font_weight=None if number else "600",
            textLength=f"{len(line) * (_LETTER if number else _BOLD):.0f}" if len(line) > 24 else None,
        )
        for number, line in enumerate(box.lines)
    )
    rect = tag(
        "rect",
        x=f"{left:.1f}",
        y=f"{place.y:.1f}",
        width=f"{place.width:.1f}",
        height=f"{place.height:.1f}",
        rx=5,
        fill=COLOURS[box.kind],
        stroke=_EDGE,
    )
    return join(rect, lines)


def _frame_svg(frame: tuple[str, float, float, float, float]) -> Markup:
    title, left, top, right, bottom = frame
    rect = tag(
        "rect",
        x=f"{left:.1f}",
        y=f"{top:.1f}",
        width=f"{right - left:.1f}",
        height=f"{bottom - top:.1f}",
        rx=8,
        fill="none",
        stroke=_FRAME,
        stroke_width=1.5,
        stroke_dasharray="6 4",
    )
    width = len(title) * _BOLD + 2
    behind = tag("rect", x=f"{left + 6:.1f}", y=f"{top + 2:.1f}", width=f"{width:.1f}", height=15, fill="#ffffff")
    return join(
        rect, behind, tag("text", title, x=f"{left + 8:.1f}", y=f"{top + 14:.1f}", fill=_FRAME, font_weight="600")
    )
