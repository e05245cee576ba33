"""The evaluation of a split: loss, accuracy and predictions, in test mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.devices import to_host
from bridge.chain.functions import chainer
from bridge.finetuning.objective import Objective
from bridge.finetuning.parallel import Ranks
from bridge.finetuning.prefetch import Ahead
from bridge.finetuning.sources import Source


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a split.

    Attributes:
        loss: The mean loss per image.
        accuracy: The share of images whose class is predicted right, 0 to 1; ``None`` without classes.
        true: The class of each image, int (N), or its answers (N, questions).
        predicted: What is predicted of each, in the same form; empty in ranks other than 0.
        estimated: What a regression estimates of each, float32 (N, targets); ``None`` with classes and in other ranks.
    """

    loss: float
    accuracy: float | None
    true: np.ndarray
    predicted: np.ndarray
    estimated: np.ndarray | None = None

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"validation loss {self.loss:.4g}"
        what = "images" if self.true.ndim == 1 else f"images' {self.true.shape[1]} labels each"
        return f"{self.accuracy:.1%} of {len(self.true)} held-out {what} right"


def forward(chain: NetChain, objective: Objective, source: Source | Ahead, indices: np.ndarray, epoch: int) -> Any:
    """Compute the trained part for some images.

    Returns:
        All blobs by name, and the labels.
    """
    return run_features(chain, objective, source, source.get(indices, epoch))


def run_features(chain: NetChain, objective: Objective, source: Source | Ahead, features: Any) -> Any:
    """The same, from what the trained part reads of the images."""
    label = objective.label
    features = {name: chain.xp.asarray(values) for name, values in features.items()}
    if objective.half:
        features = {name: x if name == label else x.astype(np.float16) for name, x in features.items()}
    return chain.run(features, start=source.start), features[label]


def evaluate(chain: NetChain, objective: Objective, source: Source, size: int, ranks: Ranks) -> Evaluation:
    """Evaluate the chain on a split.

    Args:
        chain: What is evaluated.
        objective: Its loss, and the blob of class scores.
        source: The images.
        size: Images per forward pass, of all ranks together.
        ranks: The processes; each has a part of the images, and rank 0 gets the predictions of all.
    """
    loss, right, predicted, estimated = 0.0, 0, [], []
    mine = np.arange(len(source))[ranks.span(len(source))]
    size = -(-size // ranks.size)
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        for start in range(0, len(mine), size):
            indices = mine[start : start + size]
            values, label = forward(chain, objective, source, indices, 0)
            loss += float(objective(values).array) * len(label)
            found = objective.predicted(values)
            if found is not None:
                right += int((found == label).sum())
                predicted.append(to_host(found))
            elif (numbers := objective.estimated(values)) is not None:
                estimated.append(to_host(numbers).astype(np.float32))
    loss, right, seen = ranks.summed(loss, right, len(mine))  # type: ignore[assignment]
    true = source.labels().astype(int)
    every = ranks.gathered(np.concatenate(predicted).astype(int) if predicted else true[:0])
    guessed = np.concatenate(every) if every else true[:0]
    numbers = [part for rank in ranks.gathered(estimated) for part in rank]
    each = true.shape[1] if true.ndim > 1 else 1
    accuracy = None if objective.scores is None else right / max(1, seen * each)
    return Evaluation(loss / max(1, seen), accuracy, true, guessed, np.concatenate(numbers) if numbers else None)
