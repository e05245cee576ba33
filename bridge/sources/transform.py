"""Crop, mirror, mean and scale, as Caffe's data layers do them to each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bridge.errors import ModelError
from bridge.files.readers import read_mean
from bridge.layers.data_source import DataSource, Transform
from bridge.schema import Shape, times
from bridge.sources import Surroundings


class Transformer:
    """``(crop(mirror(x)) - mean) * scale`` of one image after the other.

    Args:
        layer: The data layer.
        phase: ``TRAIN`` crops at random, ``TEST`` from the middle. Both mirror at random.
        around: Random numbers and paths.

    Raises:
        ModelError: The parameters contradict each other.
        MissingFileError: There is no mean file.

    Source: data_transformer.cpp.
    """

    def __init__(self, layer: DataSource, phase: str, around: Surroundings) -> None:
        self._layer, self._train = layer, phase == "TRAIN"
        self.transform: Transform = layer.transform
        if self.transform.force_color and self.transform.force_gray:
            raise layer.fail("has both force_color and force_gray", expected="one of them")
        self._mean = self._read_mean(around.resolve)
        self.restart(around)

    def restart(self, around: Surroundings) -> None:
        """Seed the own random numbers, if any are needed. Source: ``DataTransformer::InitRand``."""
        wanted = self.transform.mirror or (self._train and self.transform.crop_size > 0)
        self._random = around.random.child() if wanted else None

    def _read_mean(self, resolve: object) -> np.ndarray | None:
        """The mean, (C, H, W) or (C, 1, 1)."""
        if self.transform.mean_file:
            path: Path = resolve(self.transform.mean_file)  # type: ignore[operator]
            image = np.asarray(read_mean(path).numpy(), np.float32)
            return image.reshape(image.shape[-3:])
        values = np.asarray(self.transform.mean_value, np.float32)
        return values.reshape(-1, 1, 1) if values.size else None

    @property
    def channels(self) -> int | None:
        """To how many channels encoded images are to be decoded; ``None`` leaves it to the file."""
        return 3 if self.transform.force_color else 1 if self.transform.force_gray else None

    def infer(self, shape: Shape) -> Shape:
        """The shape that an image of ``shape`` comes to.

        Raises:
            ModelError: The crop or the mean does not fit it.
        """
        channels, height, width = shape
        side = self.transform.crop_size
        if side > min(height, width):
            raise self._layer.fail(f"crop_size {side} does not fit an image of {times(shape)}")
        mean = self._mean
        if self.transform.mean_file and mean is not None and mean.shape != tuple(shape):
            raise self._layer.fail(f"the mean is {times(mean.shape)}, the image is {times(shape)}")
        if mean is not None and mean.shape[0] not in (1, channels):
            expected = f"1 or one for each of {channels} channels"
            raise self._layer.fail(f"has {mean.shape[0]} mean_value", expected=expected)
        return (channels, side or height, side or width)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An image as the net is fed with it.

        Args:
            image: (C, H, W) uint8 or float32.

        Returns:
            float32 (C, crop or H, crop or W).
        """
        _, height, width = self.infer(image.shape)
        mirrored = self.transform.mirror and bool(self._below(2))
        rows, columns = image.shape[1] - height, image.shape[2] - width
        if self.transform.crop_size and self._train:
            top, left = self._below(rows + 1), self._below(columns + 1)
        else:
            top, left = rows // 2, columns // 2
        part = np.s_[:, top : top + height, left : left + width]
        values = image[part].astype(np.float32)
        if self._mean is not None:
            values -= self._mean[part] if self.transform.mean_file else self._mean
        if self.transform.scale != 1:
            values *= np.float32(self.transform.scale)
        return values[:, :, ::-1] if mirrored else values

    def _below(self, n: int) -> int:
        if self._random is None:
            raise ModelError("draws a random number without a generator", where=self._layer.label)
        return self._random.below(n)
