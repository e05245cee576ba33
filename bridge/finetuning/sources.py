"""Images of a split on their way into the net."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.finetuning.batches import Images
from bridge.finetuning.cache import Cache, Features
from bridge.finetuning.objective import Objective
from bridge.finetuning.trunk import Trunk


@dataclass
class Source:
    """Images of one split: as they are, through the trunk, or from its cache.

    Attributes:
        images: The images.
        objective: Says what the inputs are called.
        trunk: Computes the frozen layers, if there are any.
        cache: Has computed them.
        draws: How many draws of each image the cache has.
    """

    images: Images
    objective: Objective
    trunk: Trunk | None = None
    cache: Cache | None = None
    draws: int = 1

    def __len__(self) -> int:
        return len(self.images)

    def labels(self) -> np.ndarray:
        """The labels of all images, (N) float32."""
        return self.images.labels(np.arange(len(self.images)))

    def get(self, indices: np.ndarray, epoch: int) -> Features:
        """The blobs that the trained part starts from, and the labels."""
        if self.cache is not None:
            draw = epoch % self.draws
            features = self.cache.rows(indices + draw * len(self.images) if draw else indices)
        elif self.trunk is not None:
            features = self.trunk(self.images.get(indices, epoch))
        else:
            features = {self.objective.data: self.images.get(indices, epoch)}
        features[self.objective.label] = self.images.labels(indices)
        return features
