"""The images of each step, and their augmentation.

Both follow from the seed, the epoch and the step. So a resumed run sees the batches that it would
have seen without the interruption.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bridge.finetuning.data import Data
from bridge.finetuning.preprocess import ImageTransform


class Batch(NamedTuple):
    """A batch: indices of images (n), and the epoch, counted from 0."""

    indices: np.ndarray
    epoch: int


class Batches:
    """The batches of a run.

    Args:
        data: The training data.
        size: Images per batch; fixed batches have their own size.
        seed: Seed of the order.
    """

    def __init__(self, data: Data, size: int, seed: int) -> None:
        self._data, self._seed = data, seed
        self.size = data.y.shape[1] if data.fixed else min(size, len(data))
        self.per_epoch = len(data) if data.fixed else -(-len(data) // self.size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __getitem__(self, number: int) -> Batch:
        """A batch by its number, counted from 0 through all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if self._data.fixed:
            return Batch(np.array([place]), epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, 2, epoch]).permutation(len(self._data))
        return Batch(self._order[1][place * self.size : (place + 1) * self.size], epoch)

    def epoch_ends(self, iteration: int, batches: int) -> bool:
        """Whether an epoch's last batch is among the ``batches`` that this iteration takes."""
        return (iteration + 1) * batches // self.per_epoch > iteration * batches // self.per_epoch


class Images:
    """Preprocessed images of a data set.

    Args:
        data: The data.
        preprocess: How images become inputs.
        seed: Seed of the augmentation.
        train: Whether images are augmented, if the preprocessing has anything random.
    """

    def __init__(self, data: Data, preprocess: ImageTransform, seed: int, *, train: bool) -> None:
        self._data, self._preprocess, self._seed = data, preprocess, seed
        self.augmented = train and preprocess.random
        self._table: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._labels = data.y.astype(np.float32)

    def __len__(self) -> int:
        return len(self._data)

    def get(self, indices: np.ndarray, draw: int) -> np.ndarray:
        """Images (n, C, H, W) float32, in the augmented version of that number."""
        x = self._data.images(indices)
        if self._data.fixed:
            x = x.reshape(-1, *x.shape[2:])
        return self._preprocess.apply(x, self._draws(indices, draw) if self.augmented else None)

    def _draws(self, indices: np.ndarray, draw: int) -> np.ndarray:
        """Three random numbers in [0, 1) per image, (n, 3); they do not depend on the other images of the batch."""
        if self._table[0] != draw:
            self._table = draw, np.random.default_rng([self._seed, 3, draw]).random((len(self._data), 3))
        return np.asarray(self._table[1][indices])

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Labels (n), or several for each image (n, labels), float32, as in Caffe."""
        own = self._labels.shape[2 if self._data.fixed else 1 :]
        return np.asarray(self._labels[indices].reshape(-1, *own))

    def chunks(self, size: int, draws: int) -> list[tuple[np.ndarray, int]]:
        """Arguments of :meth:`get` for all images in order, ``size`` at a time, in each of ``draws`` versions."""
        rows = np.arange(len(self._data))
        return [(rows[at : at + size], draw) for draw in range(draws) for at in range(0, len(rows), size)]
