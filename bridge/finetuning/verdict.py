"""Whether a run has learned anything: its model against guessing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bridge.finetuning.outcome import Outcome
    from bridge.finetuning.plan import Plan

_CHANCE = 0.05
"""A model that guesses has at least that many right with this probability: so much luck is not believed."""
_STUCK = 0.02
"""The loss of a training that goes nowhere, relative to that of guessing."""


@dataclass(frozen=True)
class Verdict:
    """A model against guessing.

    Attributes:
        learned: Whether it is better; ``None`` where that cannot be told, such as with three held-out images.
        text: What was found, one line.
        causes: The usual causes, one line each; empty unless ``learned`` is ``False``.
    """

    learned: bool | None
    text: str = ""
    causes: tuple[str, ...] = ()


def judge(plan: Plan, outcome: Outcome) -> Verdict:
    """The verdict on a run: on held-out images, or where there are none on the training images of the last epoch.

    Guessing is naming the most frequent class. A model that is right about ``k`` of ``n`` images is better if guessing
    has ``k`` or more right with a probability of at most 5 %.
    """
    found = outcome.evaluation
    several = plan.objective.scores is None or plan.objective.answers
    if plan.train.fixed or several:  # the replay of a Caffe run is judged by that run
        return Verdict(None)
    if found is not None:
        labels, right, which = found.true, int((found.true == found.predicted).sum()), "held-out images"
    else:
        last = [record for record in outcome.history if record["epoch"] == outcome.history[-1]["epoch"]]
        labels, which = plan.train.y, "training images, in the last epoch,"
        right = round(len(labels) * float(np.mean([record["accuracy"] for record in last]))) if last else 0
    if not len(labels) or not outcome.history:
        return Verdict(None)
    share = float(np.bincount(labels.astype(int).reshape(-1)).max()) / labels.size
    text = f"{right / len(labels):.1%} of {len(labels)} {which} right; the most frequent class alone has {share:.1%}"
    if share**labels.size > _CHANCE:
        return Verdict(None, f"too few images to tell it from guessing: {text}")
    if chance(right, labels.size, share) <= _CHANCE:
        return Verdict(True, text)
    return Verdict(False, f"no better than guessing: {text}", tuple(_causes(plan, outcome)))


def chance(right: int, total: int, share: float) -> float:
    """The probability of at least ``right`` of ``total`` where each comes with a probability of ``share``."""
    if right <= 0 or share >= 1:
        return 1.0
    every = np.arange(right, total + 1)
    tables = np.array([math.lgamma(n + 1) for n in range(total + 1)])
    logs = tables[total] - tables[every] - tables[total - every]
    return float(np.exp(logs + every * math.log(share) + (total - every) * math.log1p(-share)).sum())


def _causes(plan: Plan, outcome: Outcome) -> list[str]:
    """What is usually wrong, the likeliest first."""
    causes = []
    preprocess, first, last = plan.preprocess, plan.stages[0], _last_losses(outcome.history)
    if plan.train.x.dtype == np.uint8 and preprocess.scale == 1 and not preprocess.mean.size:
        causes.append("no --mean and no --scale: the net sees numbers from 0 to 255; most were trained with a mean")
    guess = math.log(max(2, plan.objective.classes))
    rate = plan.recipe.base_lr
    if abs(last - guess) <= _STUCK * guess:
        causes.append(
            f"the training loss stays at that of guessing, {guess:.2f}: the rate {rate:g} is too high or too low "
            "(--lr; --find-lr looks for one)"
        )
    elif last > guess:
        causes.append(
            f"the training loss is {last:.3g}, above that of guessing, {guess:.2f}: --lr {rate:g} is too high"
        )
    elif outcome.evaluation is not None and last < guess / 2:
        causes.append("the training images are learned and the held-out ones are not: too few images, or wrong labels")
    else:
        causes.append(f"the rate {rate:g} is too low, or {plan.iterations} steps are too few (--lr, --epochs)")
    if len(first.trained) == 1 and first.frozen:
        causes.append(f"only '{first.trained[0]}' is trained: freeze fewer layers")
    causes.append("--show-data shows the pictures as the net sees them")
    return causes


def _last_losses(history: tuple[dict[str, Any], ...]) -> float:
    epoch = history[-1]["epoch"]
    return float(np.mean([record["loss"] for record in history if record["epoch"] == epoch]))
