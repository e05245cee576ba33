"""Which images make up which step, and what they look like then.

Everything follows from the seed, the epoch and the iteration, so that a resumed run
sees the batches that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bridge.finetune.data import Data
from bridge.finetune.preprocess import Preprocess


@dataclass(frozen=True)
class Batch:
    """Indices into the data, the epoch, and which draw of the augmentation."""

    indices: np.ndarray
    epoch: int


class Batches:
    """The batches of a run.

    Args:
        data: The training data.
        size: Images per batch; of no account for fixed batches.
        seed: For the order.
    """

    def __init__(self, data: Data, size: int, seed: int) -> None:
        self._data, self._seed = data, seed
        self.size = data.y.shape[1] if data.fixed else min(size, len(data))
        self.per_epoch = len(data) if data.fixed else -(-len(data) // self.size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __getitem__(self, number: int) -> Batch:
        """The batch of that number, counted through all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if self._data.fixed:
            return Batch(np.array([place]), epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, 2, epoch]).permutation(len(self._data))
        return Batch(self._order[1][place * self.size : (place + 1) * self.size], epoch)


class Images:
    """Preprocessed images of a data set.

    Args:
        data: The data.
        preprocess: How images become inputs.
        seed: For augmentation.
        train: Whether images are augmented.
    """

    def __init__(self, data: Data, preprocess: Preprocess, seed: int, *, train: bool) -> None:
        self._data, self._preprocess, self._seed = data, preprocess, seed
        self.augmented = train and preprocess.random

    def __len__(self) -> int:
        return len(self._data)

    def get(self, indices: np.ndarray, draw: int) -> np.ndarray:
        """Images (n, C, H, W) float32 in their draw number ``draw``."""
        x = self._data.x[indices]
        if self._data.fixed:
            x = x.reshape(-1, *x.shape[2:])
        draws = None
        if self.augmented:
            draws = np.stack([np.random.default_rng([self._seed, 3, draw, int(i)]).random(3) for i in indices])
        return self._preprocess.apply(x, draws)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Labels (n) int64."""
        return self._data.y[indices].reshape(-1)

    def chunks(self, size: int, draws: int) -> Iterator[np.ndarray]:
        """All images in order, ``size`` at a time, once per draw."""
        for draw in range(draws):
            for start in range(0, len(self._data), size):
                yield self.get(np.arange(start, min(start + size, len(self._data))), draw)
