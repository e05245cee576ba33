"""The evaluation of a split: loss, accuracy and predictions, in test mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.functions import chainer
from bridge.finetuning.objective import Objective
from bridge.finetuning.parallel import Ranks
from bridge.finetuning.sources import Source


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a split.

    Attributes:
        loss: The mean loss per image.
        accuracy: The share of images whose class is predicted right, 0 to 1; ``None`` without classes.
        true: The class of each image, int (N), or its answers (N, questions); in rank 0 the images of all ranks, its
            own first.
        predicted: What is predicted of each, in the same form.
        own: How many of them are images of this process.
    """

    loss: float
    accuracy: float | None
    true: np.ndarray
    predicted: np.ndarray
    own: int

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"validation loss {self.loss:.4g}"
        what = "images" if self.true.ndim == 1 else f"images' {self.true.shape[1]} labels each"
        return f"{self.accuracy:.1%} of {len(self.true)} held-out {what} right"


def forward(chain: NetChain, objective: Objective, source: Source, indices: np.ndarray, epoch: int) -> Any:
    """Compute the trained part for some images.

    Returns:
        All blobs by name, and the labels.
    """
    return run_features(chain, objective, source, source.get(indices, epoch))


def run_features(chain: NetChain, objective: Objective, source: Source, features: Any) -> Any:
    """The same, from what the trained part reads of the images."""
    label, xp = objective.label, chain.xp
    if xp is not np:
        features = {name: xp.asarray(values) for name, values in features.items()}
    if objective.half:
        features = {name: x if name == label else x.astype(np.float16) for name, x in features.items()}
    return chain.run(features, start=source.start), features[label]


def evaluate(chain: NetChain, objective: Objective, source: Source, size: int, ranks: Ranks) -> Evaluation:
    """Evaluate the chain on a split.

    Args:
        chain: What is evaluated.
        objective: Its loss, and the blob of class scores.
        source: The images.
        size: Images per forward pass.
        ranks: The processes; each has a part of the images, and rank 0 gets the predictions of all.
    """
    loss, right, predicted = 0.0, 0, []
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        for start in range(0, len(source), size):
            indices = np.arange(start, min(start + size, len(source)))
            values, label = forward(chain, objective, source, indices, 0)
            loss += float(objective(values).array) * len(label)
            found = objective.predicted(values)
            if found is not None:
                right += int((found == label).sum())
                predicted.append(np.asarray(chainer.backends.cuda.to_cpu(found)))
    loss, right, seen = ranks.summed(loss, right, len(source))  # type: ignore[assignment]
    mine = np.concatenate(predicted).astype(int) if predicted else np.zeros(0, int)
    every = ranks.gathered((source.labels().astype(int), mine))
    true, guessed = (np.concatenate(parts) for parts in zip(*every, strict=True)) if every else (mine, mine)
    each = true.shape[1] if true.ndim > 1 else 1
    return Evaluation(loss / max(1, seen), right / max(1, seen * each) if predicted else None, true, guessed, len(mine))
