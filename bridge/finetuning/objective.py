"""What a run makes small, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.finetuning.prepare import is_loss
from bridge.schema import Net, Shape

F = chainer.functions
_CLASSIFIERS = ("SoftmaxWithLoss", "HingeLoss", "InfogainLoss", "MultinomialLogisticLoss")


@dataclass(frozen=True)
class Objective:
    """The net's loss, and the scores that tell its accuracy.

    Attributes:
        data: The input blob of images.
        label: The input blob of labels.
        losses: Blob -> weight in the sum.
        scores: The blob of class scores; ``None`` where the net does not tell classes apart.
        classes: How many there are.
        smoothing: Share of the target that all classes have alike.
    """

    data: str
    label: str
    losses: Mapping[str, float]
    scores: str | None = None
    classes: int = 0
    smoothing: float = 0.0

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The loss, a scalar variable, from all blobs of a forward pass."""
        terms = [_weighted(values[blob], weight) for blob, weight in self.losses.items()]
        total = terms[0] if len(terms) == 1 else sum(terms[1:], start=terms[0])
        if self.smoothing and self.scores is not None:
            even = -F.mean(F.log_softmax(values[self.scores]))
            total = (1 - self.smoothing) * total + self.smoothing * even
        return total

    def predicted(self, values: Mapping[str, Any]) -> Any:
        """The class with the highest score of each image, (N); ``None`` where there are no scores."""
        return None if self.scores is None else values[self.scores].array.argmax(axis=1).reshape(-1)


def _weighted(top: Any, weight: float) -> Any:
    term = top if top.ndim == 0 else F.sum(top)
    return term if weight == 1 else term * weight


@dataclass(frozen=True)
class Judged:
    """What a split is found to be.

    Attributes:
        loss: The mean loss.
        accuracy: The part of the images that are classified right; ``None`` without classes.
        true: Each image's class, first those of this process; in rank 0 those of all.
        predicted: The class that each is taken for.
        own: How many of them are of this process.
    """

    loss: float
    accuracy: float | None
    true: np.ndarray
    predicted: np.ndarray
    own: int

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"validation loss {self.loss:.4g}"
        return f"{self.accuracy:.1%} of {len(self.true)} held-out images right"


def objective_of(net: Net, smoothing: float) -> Objective:
    """The objective of a net with losses.

    Raises:
        ModelError: It has no loss, or inputs other than images and labels.
    """
    weights = {
        top: weight
        for layer in net.layers
        for top, weight in zip(layer.tops, layer.loss_weights, strict=False)
        if weight
    }
    if not weights:
        raise ModelError("the net has no loss to train", where=net.where)
    data, label = _inputs(net)
    scores = _scores(net, label)
    made = _final_shapes(net)
    classes = made[scores][1] if scores else 0
    return Objective(data, label, weights, scores, classes, smoothing)


def _inputs(net: Net) -> tuple[str, str]:
    """The blobs of images and of labels."""
    told = [bottom for layer in net.layers if is_loss(layer) for bottom in layer.bottoms[1:] if bottom in net.inputs]
    images = [name for name, shape in net.inputs.items() if shape is not None and len(shape) == 4 and name not in told]
    others = [name for name in net.inputs if name not in images]
    if len(images) != 1 or len(others) != 1:
        raise ModelError(
            f"the net's inputs are {', '.join(net.inputs) or 'none'}; expected one of images, (N, C, H, W), and one of "
            "labels",
            where=net.where,
        )
    return images[0], others[0]


def _scores(net: Net, label: str) -> str | None:
    """What the net's last classification has for each class, with the greatest weight where there are several."""
    found = [layer for layer in net.layers if layer.type in _CLASSIFIERS and layer.bottoms[1:2] == (label,)]
    best = max(found, key=lambda layer: layer.loss_weights[0], default=None)
    if best is None:
        return None
    last = [layer for layer in found if layer.loss_weights[0] == best.loss_weights[0]][-1]
    return last.bottoms[0]


def _final_shapes(net: Net) -> dict[str, Shape]:
    made: dict[str, Shape] = {}
    for layer, tops in zip(net.layers, net.infer(), strict=True):
        made.update(zip(layer.tops, tops, strict=False))
    return made
