"""The loss that a run minimises, and the class scores that its accuracy is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.schema import Net

F = chainer.functions


@dataclass(frozen=True)
class Objective:
    """The net's loss, and its class scores.

    Attributes:
        data: The input blob of images.
        label: The input blob of labels.
        losses: Blob -> weight in the sum.
        scores: The blob of class scores; ``None`` for a net without classes, such as a regression.
        classes: The number of classes, or of yes-or-no questions.
        answers: Whether the scores answer yes-or-no questions, so that several labels may hold at once.
        smoothing: Label smoothing: the share of the target that is spread evenly over all classes.
        half: Whether images and blobs are float16.
        weights: The factor of each class on its images' loss; empty where all count the same.
        targets: The blob that a regression's loss compares with the labels; ``None`` for a net with classes.
    """

    data: str
    label: str
    losses: Mapping[str, float]
    scores: str | None = None
    classes: int = 0
    answers: bool = False
    smoothing: float = 0.0
    half: bool = False
    weights: tuple[float, ...] = ()
    targets: str | None = None

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The loss, a scalar variable, from all blobs of a forward pass."""
        terms = [_weighted(values[blob], weight) for blob, weight in self.losses.items()]
        total = terms[0] if len(terms) == 1 else sum(terms[1:], start=terms[0])
        if self.smoothing and self.scores is not None:
            even = -F.mean(F.log_softmax(F.cast(values[self.scores], total.dtype)))  # scores may be float16
            total = (1 - self.smoothing) * total + self.smoothing * even
        if self.weights and self.scores is not None:
            total = total + self._weighting(values)
        return total

    def _weighting(self, values: Mapping[str, Any]) -> Any:
        """What the classes' weights add to the mean loss: the mean of ``(weight - 1) * -log p(label)``."""
        scores, labels = values[self.scores or ""], values[self.label].array.astype(np.int32).reshape(-1)
        xp = chainer.backend.get_array_module(labels)
        more = xp.asarray(self.weights, scores.dtype)[labels] - 1
        return F.mean(-F.select_item(F.log_softmax(F.reshape(scores, (len(labels), -1))), labels) * more)

    def predicted(self, values: Mapping[str, Any]) -> Any:
        """The class with the highest score of each image, (N), or the answers, (N, questions).

        ``None`` where there are no scores.
        """
        if self.scores is None:
            return None
        found = values[self.scores].array
        return (found > 0).reshape(len(found), -1) if self.answers else found.argmax(axis=1).reshape(-1)

    def estimated(self, values: Mapping[str, Any]) -> Any:
        """What a regression estimates of each image, (N, targets); ``None`` for a net with classes."""
        if self.targets is None:
            return None
        found = values[self.targets].array
        return found.reshape(len(found), -1)


def _weighted(top: Any, weight: float) -> Any:
    term = top if top.ndim == 0 else F.sum(top)
    return term if weight == 1 else term * weight


def objective_of(net: Net, smoothing: float = 0.0, half: bool = False) -> Objective:
    """The objective of a net that has losses.

    Raises:
        ModelError: It has no loss, or inputs other than images and labels.
    """
    losses = {
        top: weight
        for layer in net.layers
        for top, weight in zip(layer.tops, layer.loss_weights, strict=False)
        if weight
    }
    if not losses:
        raise ModelError("the net has no loss to train", where=net.where)
    data, label = _inputs(net)
    scores = _scores(net, label)
    classes = net.flow.final_shapes()[scores][1] if scores else 0
    answers = any(layer.answers and scores in layer.bottoms[:1] for layer in net.layers)
    targets = _compared(net, label) if scores is None else None
    return Objective(data, label, losses, scores, classes, answers, smoothing, half, targets=targets)


def _compared(net: Net, label: str) -> str | None:
    """The blob that the only loss compares with the labels, of their shape; ``None`` where there is no such blob."""
    losses = [layer for layer in net.layers if layer.is_loss and any(layer.loss_weights) and label in layer.bottoms]
    if len(losses) != 1 or losses[0].bottoms[1:] != (label,):
        return None
    shapes = net.flow.final_shapes()
    blob = losses[0].bottoms[0]
    return blob if shapes[blob] == net.inputs[label] else None


def _inputs(net: Net) -> tuple[str, str]:
    """The blobs of images and of labels."""
    inputs = net.inputs
    labels = [bottom for layer in net.layers if layer.is_loss for bottom in layer.bottoms[1:] if bottom in inputs]
    images = [name for name, shape in inputs.items() if shape is not None and len(shape) == 4 and name not in labels]
    others = [name for name in net.inputs if name not in images]
    if len(images) != 1 or len(others) != 1:
        raise ModelError(
            f"the net's inputs are {', '.join(net.inputs) or 'none'}; expected one of images, (N, C, H, W), and one of "
            "labels",
            where=net.where,
        )
    return images[0], others[0]


def _scores(net: Net, label: str) -> str | None:
    """The class scores of the loss with the greatest weight; of several with that weight, the last one's."""
    found = [layer for layer in net.layers if (layer.classifies or layer.answers) and layer.bottoms[1:2] == (label,)]
    best = max(found, key=lambda layer: layer.loss_weights[0], default=None)
    if best is None:
        return None
    last = [layer for layer in found if layer.loss_weights[0] == best.loss_weights[0]][-1]
    return last.bottoms[0]
