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
_ROUNDING = 1e-6
"""How much better than guessing is the same, relative to it."""
_DRAWS = 10_000
"""Draws of a randomization test."""
_MOVED = 0.1
"""A change of the loss, as a share of it, that counts as one."""


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
    has ``k`` or more right with a probability of at most 5 %. Several labels are held against the most frequent answer
    to each question, and a regression against the mean of each target, by :func:`luck`; both on held-out images only.
    Where they are better than guessing, but not by enough to rule out luck, there is no verdict.
    """
    found = outcome.evaluation
    if plan.train.fixed:  # the replay of a Caffe run is judged by that run
        return Verdict(None)
    if plan.objective.scores is None or plan.objective.answers:
        return _judge_several(plan, outcome)
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


def _judge_several(plan: Plan, outcome: Outcome) -> Verdict:
    """The verdict on several labels or on a regression."""
    found, data = outcome.evaluation, plan.validation
    if found is None or data is None or not outcome.history:
        return Verdict(None)
    if plan.objective.answers:
        true = found.true.reshape(len(found.true), -1)
        right = (found.predicted.reshape(true.shape) == true).mean(1)
        usual = (true == (true.mean(0) > 0.5)).mean(1)
        better, possible = right - usual, 1 - usual
        text = (
            f"{right.mean():.1%} of {true.size} labels of {len(true)} held-out images right; the most frequent answers "
            f"have {usual.mean():.1%}"
        )
    elif found.estimated is not None:
        targets = data.y.reshape(len(data.y), -1).astype(np.float64)
        errors = ((found.estimated - targets) ** 2).mean(1)
        possible = ((targets - targets.mean(0)) ** 2).mean(1)
        better = possible - errors
        text = (
            f"mean squared error {errors.mean():.3g} on {len(targets)} held-out images; the mean of their targets has "
            f"{possible.mean():.3g}"
        )
    else:
        return Verdict(None)
    if luck(better) <= _CHANCE:
        return Verdict(True, text)
    if better.mean() > _ROUNDING * possible.mean() or luck(possible) > _CHANCE:
        return Verdict(None, f"too few images to tell it from guessing: {text}")
    return Verdict(False, f"no better than guessing: {text}", tuple(_causes(plan, outcome)))


def luck(better: np.ndarray) -> float:
    """The probability of so large a mean, where the sign of each image's number is a toss: a randomization test.

    Args:
        better: By how much the model is better than guessing, (N).

    Source: Fisher, The Design of Experiments, section 21, with 10,000 draws of the signs.
    """
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (_DRAWS, len(better)))
    return float((signs @ better >= better.sum() * (1 - 1e-12)).mean())


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
    preprocess, first = plan.preprocess, plan.stages[0]
    last = _mean_loss(outcome.history, outcome.history[-1]["epoch"])
    if plan.train.x.dtype == np.uint8 and preprocess.scale == 1 and not preprocess.mean.size:
        causes.append("no --mean and no --scale: the net sees numbers from 0 to 255; most were trained with a mean")
    several = plan.objective.scores is None or plan.objective.answers
    steps, guess = outcome.history, 0.0 if several else math.log(max(2, plan.objective.classes))
    begun = _mean_loss(steps, steps[0]["epoch"]) if steps[-1]["epoch"] > steps[0]["epoch"] else steps[0]["loss"]
    causes.append(cause_of_losses(begun, last, guess, plan.recipe.base_lr))
    if len(first.trained) == 1 and first.frozen:
        causes.append(f"only '{first.trained[0]}' is trained: freeze fewer layers")
    causes.append("--show-data shows the pictures as the net sees them")
    return causes


def cause_of_losses(first: float, last: float, guess: float, rate: float) -> str:
    """What the training loss tells.

    Args:
        first: The mean loss of the first epoch, or where there is one epoch only the loss of the first step.
        last: The mean loss of the last epoch.
        guess: The loss of a net that gives all classes the same score; 0 where it is not known.
        rate: The learning rate at the start.
    """
    if guess and abs(last - guess) <= _STUCK * guess:
        return (
            f"the training loss stays at that of guessing, {guess:.2f}: the rate {rate:g} is too high or too low "
            "(--lr; --find-lr looks for one)"
        )
    if not last <= first * (1 + _MOVED):
        return f"the training loss rose from {first:.3g} to {last:.3g}: the rate {rate:g} is too high (--lr, --find-lr)"
    if last >= first * (1 - _MOVED):
        return (
            f"the training loss hardly moved, from {first:.3g} to {last:.3g}: the rate {rate:g} is too low (--find-lr)"
        )
    if last < (guess or first) / 2:
        return "the training images are learned and the held-out ones are not: too few images, or wrong labels"
    return f"the training loss is still {last:.3g}: more --epochs, or another --lr (--find-lr looks for one)"


def _mean_loss(history: tuple[dict[str, Any], ...], epoch: int) -> float:
    return float(np.mean([record["loss"] for record in history if record["epoch"] == epoch]))
