"""ImageData: images from a list of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from bridge.errors import FormatError
from bridge.layers.image_data import ImageData
from bridge.limits.sources import read_file
from bridge.sources import Surroundings
from bridge.sources.items import Item, ItemSource
from bridge.sources.pictures import read_picture, resize


class ImageListSource(ItemSource):
    """The files of a list, over and over; shuffled anew at each pass where the layer says so.

    Source: image_data_layer.cpp.
    """

    def open(self, around: Surroundings) -> None:
        """See :meth:`bridge.sources.items.ItemSource.open`."""
        layer = cast(ImageData, self.layer)
        if bool(layer.new_height) != bool(layer.new_width):
            raise layer.fail(f"new_height is {layer.new_height} and new_width is {layer.new_width}", expected="both")
        self._resolve = around.resolve
        self._lines = lines(around.resolve(layer.source))
        self._at = 0
        self._random = around.random.child() if layer.shuffle else None
        if self._random is not None:
            self._random.shuffle(self._lines)
        if layer.rand_skip:
            self._at = around.random.draw() % layer.rand_skip
            if self._at >= len(self._lines):
                raise layer.fail(f"rand_skip skips {self._at} of {len(self._lines)} images")

    def item(self) -> Item:
        """See :meth:`bridge.sources.items.ItemSource.item`."""
        layer = cast(ImageData, self.layer)
        name, label = self._lines[self._at]
        self._at += 1
        if self._at == len(self._lines):
            self._at = 0
            if self._random is not None:
                self._random.shuffle(self._lines)
        image = read_picture(self._resolve(layer.root_folder + name), 3 if layer.is_color else 1)
        return (resize(image, layer.new_height, layer.new_width) if layer.new_height else image), label


def lines(path: Path) -> list[tuple[str, int]]:
    """The names and labels of a list.

    Raises:
        MissingFileError: It cannot be read.
        FormatError: It is empty, or a line has no label.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        name, space, label = line.rpartition(" ")
        match = re.match(r"\s*[+-]?\d+", label)
        if not space or match is None:
            raise FormatError(f"line {number} is '{line}'", expected="'path label'", where=str(path))
        found.append((name, int(match[0])))
    if not found:
        raise FormatError("lists no files", where=str(path))
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        MissingFileError: It cannot be read.
        FormatError: It is no text.
    """
    try:
        text = read_file(path).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("is no text", expected="a list", where=str(path)) from None
    return [line for line in text.splitlines() if line.strip()]
