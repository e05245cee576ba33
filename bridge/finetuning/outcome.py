"""What came out of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.finetuning.evaluation import Evaluation


@dataclass(frozen=True)
class Outcome:
    """What came out of a run's loop.

    Attributes:
        iterations: Steps that were done.
        stopped: Whether the run ended early, by ``patience``.
        history: The record of each step, as in ``log.jsonl``; empty in ranks other than 0.
        best_epoch: The epoch with the highest accuracy on held-out images, of several the one with the lowest loss, and
            of those the first; counted from 0; -1 without validation.
        best_loss: Its validation loss.
        evaluation: The evaluation of the model on the validation data, if there are any.
        arrays: The trained arrays of the model, by their paths in the chain.
        best: Those of the best epoch, where the model is that of another; else empty.
    """

    iterations: int
    stopped: bool
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    best_loss: float | None
    evaluation: Evaluation | None
    arrays: Mapping[str, np.ndarray]
    best: Mapping[str, np.ndarray]
