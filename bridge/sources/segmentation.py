"""DenseImageData: images with a picture of labels each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from bridge.errors import FormatError, ModelError
from bridge.layers.base import CaffeLayer
from bridge.layers.image_seg_data import DenseImageData
from bridge.schema import Shape, times
from bridge.sources import BatchSource, Surroundings, new_array
from bridge.sources.image_list import read_lines
from bridge.sources.pictures import read_picture, resize
from bridge.sources.transform import Transformer

Labelled = tuple[np.ndarray, np.ndarray]
"""An image (C, H, W) and its labels (1, H, W), both uint8."""


class DenseImageSource(BatchSource):
    """The pairs of files of a list, over and over. The mean and the scale are the image's alone.

    Source: dense_image_data_layer.cpp of caffe-segnet.
    """

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.BatchSource.setup`."""
        around = around or Surroundings()
        self.layer = own = cast(DenseImageData, layer)
        self._check(own)
        self._resolve, self._random = around.resolve, around.random
        words = " ".join(read_lines(around.resolve(own.source))).split()
        if not words or len(words) % 2:
            where = str(around.resolve(own.source))
            raise FormatError(f"holds {len(words)} names", expected="pairs of image and labels", where=where)
        self._pairs = list(zip(words[::2], words[1::2], strict=True))
        self._order = around.random.child() if own.shuffle else None
        if self._order is not None:
            self._order.shuffle(self._pairs)
        self._at = around.random.draw() % own.rand_skip if own.rand_skip else 0
        if self._at >= len(self._pairs):
            raise own.fail(f"rand_skip skips {self._at} of {len(self._pairs)} images")
        self._transformer = Transformer(own, phase, around)
        self._ahead: Labelled | None = None

    @staticmethod
    def _check(layer: DenseImageData) -> None:
        if layer.batch_size < 1:
            raise layer.fail(f"parameter 'batch_size' is {layer.batch_size}, expected at least 1")
        for name in ("new", "crop"):
            height, width = getattr(layer, f"{name}_height"), getattr(layer, f"{name}_width")
            if bool(height) != bool(width):
                raise layer.fail(f"{name}_height is {height} and {name}_width is {width}, expected both or neither")
        if layer.transform.mirror or layer.transform.crop_size:
            raise layer.fail("transform_param has mirror or crop_size, which would move images but not their labels")

    def _read(self) -> Labelled:
        """The next pair."""
        layer = self.layer
        names = [layer.root_folder + name for name in self._pairs[self._at]]
        self._at += 1
        if self._at == len(self._pairs):
            self._at = 0
            if self._order is not None:
                self._order.shuffle(self._pairs)
        image = read_picture(self._resolve(names[0]), 3 if layer.is_color else 1)
        labels = read_picture(self._resolve(names[1]), 1)
        if layer.new_height:
            size = layer.new_height, layer.new_width
            image, labels = resize(image, *size), _nearest(labels, *size)
        if image.shape[1:] != labels.shape[1:]:
            raise ModelError(
                f"{names[0]} is {times(image.shape[1:])}, its labels {names[1]} are {times(labels.shape[1:])}",
                where=layer.label,
            )
        return image, labels

    def shapes(self) -> Sequence[Shape]:
        """See :meth:`bridge.sources.BatchSource.shapes`."""
        if self._ahead is None:
            self._ahead = self._read()
        image, layer = self._ahead[0], self.layer
        if layer.crop_height > image.shape[1] or layer.crop_width > image.shape[2]:
            raise layer.fail(
                f"a crop of {layer.crop_height}x{layer.crop_width} does not fit an image of {times(image.shape)}"
            )
        space = (layer.crop_height or image.shape[1], layer.crop_width or image.shape[2])
        return [(layer.batch_size, len(image), *space), (layer.batch_size, 1, *space)][: len(layer.tops)]

    def next_batch(self) -> Sequence[np.ndarray]:
        """See :meth:`bridge.sources.BatchSource.next_batch`."""
        shape = self.shapes()[0]
        data, labels = new_array(shape), new_array((shape[0], 1, *shape[2:]))
        for place in range(shape[0]):
            image, mask = self._moved(*(self._ahead or self._read()))
            self._ahead = None
            if image.shape != shape[1:]:
                raise ModelError(
                    f"image {place} of a batch is {times(image.shape)}, the first one is {times(shape[1:])}",
                    where=self.layer.label,
                    hint="batch_size 1, a crop, or images of one size",
                )
            data[place], labels[place] = self._transformer(image), mask
        return [data, labels][: len(self.layer.tops)]

    def _moved(self, image: np.ndarray, labels: np.ndarray) -> Labelled:
        """A pair mirrored and cropped at random, in the training and in the test phase."""
        layer = self.layer
        if layer.mirror and self._random.draw() % 2:
            image, labels = image[:, :, ::-1], labels[:, :, ::-1]
        if layer.crop_height:
            top = self._random.draw() % (image.shape[1] - layer.crop_height + 1)
            left = self._random.draw() % (image.shape[2] - layer.crop_width + 1)
            part = np.s_[:, top : top + layer.crop_height, left : left + layer.crop_width]
            image, labels = image[part], labels[part]
        return image, labels


def _nearest(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in another size, each pixel the nearest one. Source: OpenCV resize.cpp ``INTER_NEAREST``."""
    rows = np.floor(np.arange(height) * (image.shape[1] / height)).astype(int)
    columns = np.floor(np.arange(width) * (image.shape[2] / width)).astype(int)
    return np.ascontiguousarray(image[:, rows.clip(0, image.shape[1] - 1)][:, :, columns.clip(0, image.shape[2] - 1)])
