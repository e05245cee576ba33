"""PriorBox: the boxes that SSD's predictions are relative to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.limits.budget import BUDGET
from bridge.schema import Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("PriorBox")
class PriorBox(CaffeLayer):
    """Boxes of several sizes and shapes around the centre of each cell of bottom 0, relative to the image, bottom 1.

    Per ``min_size``: a square of that side; with ``max_size`` one of side ``sqrt(min_size max_size)``; and one of
    area ``min_size^2`` for each aspect ratio. As in SSD, sizes are cut down to whole pixels.
    FaceBoxes has in the place of ``min_size`` a ``fixed_size`` for squares whose centres stand ``density`` times
    closer, in rows and columns around the cell's own centre; these boxes are cut at the image's border. With
    ``fixed_ratio``, each of its values has such a lattice of boxes, of the same area and ``fixed_ratio`` times wider
    than high, in the place of the squares.
    The top is (1, 2, 4 x boxes): xmin, ymin, xmax, ymax of each box, cell by cell, then their variances.

    Attributes:
        aspect_ratio: Width over height, without the 1 that is always there; with the inverses if ``flip`` is set.
        clip: Cut the boxes at the image's border.
        variance: One for all coordinates, or four.
        img: (height, width) of the image; none to take it from bottom 1.
        step: (height, width) of a cell in pixels; none to divide the image by the cells.
        offset: Where the centre of a cell is, in cells.
        fixed_size: Sides of squares, in the place of ``min_size``.
        density: For each ``fixed_size``, how many boxes stand side by side in a cell.
        fixed_ratio: Width over height of the boxes of each ``fixed_size``; none for squares.

    Source: caffe.proto ``PriorBoxParameter``, prior_box_layer.cpp of SSD, and for ``density``
    of forks for FaceBoxes; for ``fixed_ratio`` OpenVINO's prior_box; Liu et al., SSD, 2016.
    """

    adds_many = False
    rounds_near_one = False
    message = "prior_box_param"
    bottom_count = (2, 2)
    top_count = (1, 1)

    min_size: tuple[float, ...] = ()
    max_size: tuple[float, ...] = ()
    aspect_ratio: tuple[float, ...] = ()
    clip: bool = False
    variance: tuple[float, ...] = (0.1,)
    img: tuple[int, ...] = ()
    step: tuple[float, ...] = ()
    offset: float = 0.5
    fixed_size: tuple[float, ...] = ()
    density: tuple[float, ...] = ()
    fixed_ratio: tuple[float, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p) | read_grid(p)
        if values["fixed_size"]:
            return _with_densities(p, values)
        if values["density"] or values["fixed_ratio"]:
            raise p.fail("has density or fixed_ratio without fixed_size")
        if not all(ratio > 0 for ratio in values["aspect_ratio"]):
            raise p.fail("parameter 'aspect_ratio' has a value that is not positive")
        values["aspect_ratio"] = _ratios(values["aspect_ratio"], p.read("flip", bool, True))
        small, large = values["min_size"], values["max_size"]
        if not small or min(small) <= 0:
            raise p.fail("parameter 'min_size' is missing or not positive")
        if large and (len(large) != len(small) or any(b <= a for a, b in zip(small, large, strict=True))):
            raise p.fail("parameter 'max_size' must have one value above each min_size")
        return values

    @property
    def _offset(self) -> np.float32:
        return np.float32(self.offset)

    def sides(self) -> np.ndarray:
        """(boxes per cell, 2) float32: half of the width and of the height of each."""
        BUDGET.check(100 * self._per_cell, self.label)
        if self.fixed_size:
            ratios = np.sqrt(_single(self.fixed_ratio or (1,))).astype(np.float64)
            halves = [
                [(side / 2 * root, side / 2 / root)] * int(n) ** 2 for side, n in self._lattices() for root in ratios
            ]
            return np.concatenate(halves).astype(np.float32)
        roots = np.sqrt(_single(self.aspect_ratio)).astype(np.float64)
        sides: list[Any] = []
        for index, small in enumerate(np.trunc(self.min_size)):
            sides.append([(small, small)])
            if self.max_size:
                sides.append([(np.sqrt(small * np.trunc(self.max_size[index])),) * 2])
            sides.append(np.stack([small * roots, small / roots], axis=1))
        return np.concatenate(sides).astype(np.float32).reshape(-1, 2) / 2

    @property
    def _per_cell(self) -> int:
        """Boxes per cell."""
        if self.fixed_size:
            return sum(int(n) ** 2 for n in self.density) * len(self.fixed_ratio or (1,))
        return len(self.min_size) * (1 + bool(self.max_size) + len(self.aspect_ratio))

    def shifts(self) -> np.ndarray:
        """(boxes per cell, 2) float32: how far the centre of each is from the cell's, in x and y."""
        if not self.fixed_size:
            return np.zeros((len(self.sides()), 2), np.float32)
        each = len(self.fixed_ratio or (1,))
        return np.concatenate([_lattice(side, int(n)) for side, n in self._lattices() for _ in range(each)])

    def _lattices(self) -> Iterator[tuple[float, float]]:
        return zip(self.fixed_size, self.density, strict=True)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4 or len(bottoms[1]) != 4:
            raise self.fail(f"the inputs have {len(bottoms[0])} and {len(bottoms[1])} axes", expected="4 and 4")
        height, width = bottoms[0][2:]
        return ((1, 2, height * width * self._per_cell * 4),)

    def boxes(self, cells: Shape, image: Shape) -> np.ndarray:
        """The top, (1, 2, 4 x boxes) float32, for ``cells`` and ``image`` given as (height, width)."""
        BUDGET.check(48 * cells[0] * cells[1] * self._per_cell * 4, self.label)  # on the way in float64
        image = self.img or image
        step = _single(self.step) if self.step else _single(image) / _single(cells)
        rows, columns = ((np.arange(n, dtype=np.float32) + self._offset) * s for n, s in zip(cells, step, strict=True))
        centres = np.stack(np.meshgrid(columns, rows), axis=-1)[:, :, None, :].astype(np.float64)
        centres = centres + self.shifts()
        sides, size = self.sides(), np.array(image[::-1])
        boxes = np.concatenate([(centres - sides) / size, (centres + sides) / size], axis=-1).astype(np.float32)
        boxes = boxes.clip(0, 1) if self.clip else boxes
        return np.stack([boxes, np.broadcast_to(_single(self.variance), boxes.shape)]).reshape(1, 2, -1)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        cells, image = (g.shape(value) for value in x)
        if all(shape.fixed(axis) for shape in (cells, image) for axis in (2, 3)):
            return g.const(self.boxes(tuple(cells[2:]), tuple(image[2:])), f"{self.name}.boxes")
        return self._computed(g, *x)

    def _computed(self, g: OnnxBuilder, cells: str, image: str) -> str:
        """The same, for extents that are known when the model runs; each node takes a runtime some time."""
        space = _space(g, cells)
        count = g.Cast(space, to=1)
        size = g.const(_single(self.img)) if self.img else g.Cast(_space(g, image), to=1)
        step = g.const(_single(self.step)) if self.step else g.Div(size, count)
        half = self.sides()
        reach = np.stack([-half, half], axis=1) + self.shifts()[:, None]  # (boxes, first and last, x and y)
        target, parts = g.Concat(space, g.ints([len(half), 2, 1]), axis=0), []
        for axis, shape in ((1, [1, -1, 1, 1, 1]), (0, [-1, 1, 1, 1, 1])):  # x, y
            place = g.const(np.int64(axis))
            number, stride, whole = (g.Gather(value, place) for value in (count, step, size))
            centre = g.Range(g.const(np.float32(0)), number, g.const(np.float32(1)))
            centre = g.Reshape(g.Mul(g.Add(centre, g.const(self._offset)), stride), g.ints(shape))
            part = g.Div(g.Add(centre, g.const(reach[..., 1 - axis, None])), whole)
            parts.append(g.Expand(part, target))
        boxes = g.Concat(*parts, axis=4)
        if self.clip:
            boxes = g.Clip(boxes, g.const(np.float32(0)), g.const(np.float32(1)))
        variance = g.const(np.broadcast_to(_single(self.variance), (4,)).reshape(2, 2))
        both = g.Concat(boxes, g.Expand(variance, g.Shape(boxes)), axis=0)
        return g.Reshape(both, g.ints([1, 2, -1]))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.as_variable(x[0].xp.asarray(self.boxes(x[0].shape[2:], x[1].shape[2:])))


def read_grid(p: Params) -> dict[str, Any]:
    """Where the boxes stand: the fields that PriorBox and its like share."""
    variance = p.read("variance", tuple[float, ...], (0.1,))
    if len(variance) not in (1, 4) or min(variance) <= 0:
        raise p.fail(f"parameter 'variance' has {len(variance)} values", expected="1 or 4 positive ones")
    return {
        "img": _sides(p, "img_size", "img", int),
        "step": _sides(p, "step", "step", float),
        "variance": variance,
        "clip": p.read("clip", bool, False),
        "offset": p.read("offset", float, 0.5),
    }


def _with_densities(p: Params, values: dict[str, Any]) -> dict[str, Any]:
    sizes, densities = values["fixed_size"], values["density"]
    if len(densities) != len(sizes) or min(*sizes, *densities) < 1 or any(n % 1 for n in densities):
        raise p.fail(
            f"has {len(sizes)} fixed_size and {len(densities)} density", expected="whole numbers, one for each"
        )
    if not all(ratio > 0 for ratio in values["fixed_ratio"]):
        raise p.fail("parameter 'fixed_ratio' has a value that is not positive")
    if any(values[name] for name in ("min_size", "max_size", "aspect_ratio")):
        raise p.fail("has fixed_size beside min_size, max_size or aspect_ratio, whose order is not known")
    p.read("flip", bool, True)  # for aspect ratios, of which there are none
    return {**values, "clip": True}


def _lattice(side: float, density: int) -> np.ndarray:
    """(density^2, 2) float32: the centres of a cell's squares in x and y, row by row."""
    gap = int(side) // density if float(side).is_integer() else int(side / density)
    places = (np.arange(density) * gap + gap / 2 - side / 2).astype(np.float32)
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)


def _single(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


def _space(g: OnnxBuilder, x: str) -> str:
    """(height, width) of a 4-D value, int64."""
    return g.Slice(g.Shape(x), g.ints([2]), g.ints([4]))


def _ratios(given: tuple[float, ...], flip: bool) -> tuple[float, ...]:
    """The aspect ratios beside 1, in SSD's order: each once, followed by its inverse if it flips."""
    ratios = [1.0]
    known: dict[float, tuple[float, float]] = {}  # the smallest and the largest ratio of each millionth
    _know(known, 1.0)
    for ratio in given:
        place = _place(ratio)
        near = [value for step in (-1, 0, 1) for value in known.get(place + step, ())]
        if all(abs(ratio - value) >= 1e-6 for value in near):
            more = [ratio, 1 / ratio] if flip else [ratio]
            ratios += more
            for new in more:
                _know(known, new)
    return tuple(ratios[1:])


def _know(known: dict[float, tuple[float, float]], ratio: float) -> None:
    low, high = known.get(_place(ratio), (ratio, ratio))
    known[_place(ratio)] = min(low, ratio), max(high, ratio)


def _place(ratio: float) -> float:
    """Which millionth a ratio is in: ratios that are less than a millionth apart are in the same or the next one."""
    return float(np.floor(ratio * 1e6))


def _sides(p: Params, name: str, prefix: str, kind: type) -> tuple[Any, ...]:
    """(height, width) from one field or two; none where neither is there."""
    pair = (f"{prefix}_h", f"{prefix}_w")
    if not any(side in p for side in (name, *pair)):
        return ()
    if name in p and any(side in p for side in pair):
        raise p.fail(f"either {name} or {pair[0]} and {pair[1]}, not both")
    sides = tuple(p.read(side, kind, p.read(name, kind, 0)) for side in pair)
    if min(sides) <= 0:
        raise p.fail(f"parameter '{name}' must be positive")
    return sides
