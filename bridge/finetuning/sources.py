"""The inputs of the trained part of a net, for the images of a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.finetuning.batches import Images
from bridge.finetuning.cache import Cache, Features
from bridge.finetuning.objective import Objective
from bridge.finetuning.trunk import Trunk


@dataclass(frozen=True)
class Source:
    """The images of one split: as they are, as features of the trunk, or as cached features.

    Attributes:
        images: The images.
        objective: Names the input blobs.
        trunk: Computes the frozen layers; ``None`` where no layers are computed apart.
        cache: Features that were computed before; ``None`` computes them in every step.
        draws: Augmented versions of each image in the cache.
    """

    images: Images
    objective: Objective
    trunk: Trunk | None = None
    cache: Cache | None = None
    draws: int = 1

    def __len__(self) -> int:
        return len(self.images)

    @property
    def start(self) -> int:
        """Index of the first layer to compute."""
        return self.trunk.cut.index if self.trunk is not None else 0

    def labels(self) -> np.ndarray:
        """The labels of all images, (N) float32."""
        return self.images.labels(np.arange(len(self.images)))

    def get(self, indices: np.ndarray, epoch: int) -> Features:
        """The blobs that the trained part reads, and the labels, by name."""
        if self.cache is not None:
            draw = epoch % self.draws
            features = self.cache.rows(indices + draw * len(self.images) if draw else indices)
        elif self.trunk is not None:
            features = self.trunk(self.images.get(indices, epoch))
        else:
            features = {self.objective.data: self.images.get(indices, epoch)}
        features[self.objective.label] = self.images.labels(indices)
        return features
