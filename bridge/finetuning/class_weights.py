"""Weights of classes, for data in which some are rare or matter more."""

from __future__ import annotations

import numpy as np

from bridge.errors import UsageError, nearest
from bridge.finetuning.config import Config
from bridge.finetuning.data import Data
from bridge.finetuning.objective import Objective
from bridge.layers import REGISTRY
from bridge.schema import Net


def class_weights(config: Config, net: Net, objective: Objective, train: Data) -> tuple[float, ...]:
    """The factor of each class on its images' loss; their mean over the training images is 1. Empty without weights.

    ``balanced`` gives a class with half as many images twice the weight.

    Raises:
        UsageError: The net's loss is no softmax loss over one class per image, or there is no class of that name.
    """
    wish = config.class_weights
    if not wish:
        return ()
    softmax = [
        layer
        for layer in net.layers
        if layer.classifies and layer.bottoms[0] == objective.scores and layer.inference_type in REGISTRY
    ]
    if not softmax or not REGISTRY[softmax[0].inference_type].probabilities or train.fixed or train.y.ndim > 1:
        raise UsageError("--class-weights needs a softmax loss over one class per image", where=net.where)
    totals = np.bincount(train.y, minlength=objective.classes).astype(float)
    weights = np.ones(objective.classes)
    if isinstance(wish, str):
        weights[totals > 0] = 1 / totals[totals > 0]
    else:
        names = [*train.classes, *map(str, range(len(train.classes), objective.classes))]
        for name, factor in wish.items():
            if name not in names:
                raise UsageError(f"--class-weights: no class '{name}'", hint=nearest(name, names))
            weights[names.index(name)] = factor
    mean = float((weights * totals).sum() / totals.sum())
    return tuple((weights / mean).tolist()) if mean else ()
