"""WindowData: windows cut from images, some on objects and some beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from bridge.errors import FormatError
from bridge.files.readers import read_mean
from bridge.layers.base import CaffeLayer
from bridge.layers.window_data import WindowData
from bridge.schema import Shape, times
from bridge.sources import BatchSource, Surroundings
from bridge.sources.image_list import read_lines
from bridge.sources.pictures import read_picture, resize
from bridge.sources.transform import Transformer


class Window(NamedTuple):
    """A window: its image, its class, and its corners, which belong to it."""

    image: int
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


class Placed(NamedTuple):
    """Where a window's pixels come from, and where they go to in the net's input."""

    x1: int
    y1: int
    x2: int
    y2: int
    height: int
    width: int
    top: int
    left: int


class WindowSource(BatchSource):
    """Batches of windows drawn at random: background first, then objects. Source: window_data_layer.cpp."""

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.BatchSource.setup`."""
        around = around or Surroundings()
        self.layer = cast(WindowData, layer)
        transform = self.layer.transform
        if transform.crop_size < 1 or self.layer.batch_size < 1:
            raise self.layer.fail("crop_size and batch_size must be positive")
        if transform.crop_size <= 2 * self.layer.context_pad:
            raise self.layer.fail(
                f"context_pad {self.layer.context_pad} leaves nothing of crop_size {transform.crop_size}"
            )
        if self.layer.crop_mode not in ("warp", "square"):
            raise self.layer.fail("crop_mode", found=f"'{self.layer.crop_mode}'", expected="warp or square")
        transformer = Transformer(self.layer, phase, around)
        self._random = around.random.child()
        self._read(around)
        transformer.restart(around)
        around.random.draw()  # the seed of Caffe's reading thread
        scale = self.layer.definition.message(self.layer.message).get("scale", 1.0)
        self._scale = np.float32(scale if isinstance(scale, (int, float)) else 1.0)
        self._mean = self._read_mean(around)

    def _read(self, around: Surroundings) -> None:
        path = around.resolve(self.layer.source)
        layer = self.layer
        self._images: list[Path] = []
        self._objects: list[Window] = []
        self._background: list[Window] = []
        words = iter(" ".join(read_lines(path)).split())
        for _ in words:
            index, name, channels, _, _, number = (next(words, "") for _ in range(6))
            if _int(channels, path) != 3:
                raise FormatError(f"an image of {channels} channels", expected="3, as it is read", where=str(path))
            self._images.append(around.resolve(layer.root_folder + name))
            for _ in range(_int(number, path)):
                self._add(_int(index, path), words, path)
        if not self._objects or not self._background:
            found = f"{len(self._objects)} windows on objects and {len(self._background)} beside them"
            raise FormatError(f"has {found}", expected="both", where=str(path))

    def _add(self, image: int, words: Iterator[str], path: Path) -> None:
        label, overlap, *corners = [next(words, "") for _ in range(6)]
        try:
            share = np.float32(overlap)
        except ValueError:
            raise FormatError(f"has '{overlap}'", expected="an overlap", where=str(path)) from None
        x1, y1, x2, y2 = (_int(corner, path) for corner in corners)
        if x2 < x1 or y2 < y1 or image < 0:
            found = f"{x1},{y1} to {x2},{y2} in image {image}"
            raise FormatError(
                f"a window {found}", expected="its first corner left of and above its last", where=str(path)
            )
        if share >= np.float32(self.layer.fg_threshold):
            if _int(label, path) < 1:
                raise FormatError(f"a window on an object has class {label}", expected="1 or more", where=str(path))
            self._objects.append(Window(image, _int(label, path), x1, y1, x2, y2))
        elif share < np.float32(self.layer.bg_threshold):
            self._background.append(Window(image, 0, x1, y1, x2, y2))

    def _read_mean(self, around: Surroundings) -> np.ndarray:
        """The mean of the net's input: (C, crop, crop), (C, 1, 1), or nothing."""
        transform = self.layer.transform
        if not transform.mean_file:
            return np.asarray(transform.mean_value, np.float32).reshape(-1, 1, 1)
        stored = read_mean(around.resolve(transform.mean_file))
        image = np.asarray(stored.numpy(), np.float32).reshape(stored.shape[-3:])
        side = transform.crop_size
        first = (image.shape[2] - side) // 2
        if first < 0 or first + side > image.shape[1]:
            raise self.layer.fail(f"crop_size {side} does not fit the mean of {times(image.shape)}")
        return image[:, first : first + side, first : first + side]

    def shapes(self) -> Sequence[Shape]:
        """See :meth:`bridge.sources.BatchSource.shapes`."""
        side = self.layer.transform.crop_size
        return [(self.layer.batch_size, 3, side, side), (self.layer.batch_size,)]

    def next_batch(self) -> Sequence[np.ndarray]:
        """See :meth:`bridge.sources.BatchSource.next_batch`."""
        shape = self.shapes()[0]
        data, labels = self.new_batch()
        objects = int(np.float32(shape[0]) * np.float32(self.layer.fg_fraction))
        for place in range(shape[0]):
            windows = self._objects if place >= shape[0] - objects else self._background
            window = windows[self._random.below(len(windows))]
            mirrored = self.layer.transform.mirror and bool(self._random.below(2))
            self._cut(window, mirrored, data[place])
            labels[place] = window.label
        return [data, labels]

    def _cut(self, window: Window, mirrored: bool, into: np.ndarray) -> None:
        if window.image >= len(self._images):
            raise self.layer.fail(f"a window is in image {window.image}, there are {len(self._images)}")
        image = read_picture(self._images[window.image], 3)
        at = self._placed(window, mirrored, image.shape[1], image.shape[2])
        inside = 0 <= at.x1 <= at.x2 < image.shape[2] and 0 <= at.y1 <= at.y2 < image.shape[1]
        if not inside or at.height < 1 or at.width < 1:
            box = f"{window.x1},{window.y1} to {window.x2},{window.y2}"
            raise self.layer.fail(f"window {box} is outside its image of {times(image.shape[1:])}")
        pixels = resize(image[:, at.y1 : at.y2 + 1, at.x1 : at.x2 + 1], at.height, at.width)
        part = np.s_[:, at.top : at.top + at.height, at.left : at.left + at.width]
        values = (pixels[:, :, ::-1] if mirrored else pixels).astype(np.float32)
        if self._mean.size:
            values -= self._mean[part] if self.layer.transform.mean_file else self._mean
        into[part] = values * self._scale

    def _placed(self, window: Window, mirrored: bool, rows: int, columns: int) -> Placed:
        """The window with its surroundings, and its place in the net's input."""
        side, pad = self.layer.transform.crop_size, self.layer.context_pad
        square = self.layer.crop_mode == "square"
        if not pad and not square:
            return Placed(window.x1, window.y1, window.x2, window.y2, side, side, 0, 0)
        factor = np.float32(side) / np.float32(side - 2 * pad)
        halves = [
            np.float32((last - first + 1) / 2) for first, last in ((window.x1, window.x2), (window.y1, window.y2))
        ]
        centres = [np.float32(first) + half for first, half in zip((window.x1, window.y1), halves, strict=True)]
        if square:
            halves = [max(halves)] * 2
        across, along = (
            _axis(centre, half * factor, extent, side)
            for centre, half, extent in zip(centres, halves, (columns, rows), strict=True)
        )
        left, top = across[3] if mirrored else across[2], along[2]
        width, height = min(across[4], side - left), min(along[4], side - top)
        return Placed(across[0], along[0], across[1], along[1], height, width, top, left)


def _axis(centre: np.float32, half: np.float32, extent: int, side: int) -> tuple[int, int, int, int, int]:
    """Along one axis: first and last pixel inside the image, padding before and behind, and the new extent."""
    first, last = _round(centre - half), _round(centre + half)
    before, behind = max(0, -first), max(0, last - extent + 1)
    factor = np.float32(side) / np.float32(last - first + 1)
    first, last = first + before, last - behind
    new = [_round(np.float32(n) * factor) for n in (before, behind, last - first + 1)]
    return first, last, new[0], new[1], new[2]


def _round(value: np.float32) -> int:
    """Halves go away from zero, as in C."""
    return math.floor(float(value) + 0.5) if value >= 0 else math.ceil(float(value) - 0.5)


def _int(word: str, path: Path) -> int:
    try:
        return int(word)
    except ValueError:
        raise FormatError(f"has '{word}'", expected="a whole number", where=str(path)) from None
