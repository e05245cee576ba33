"""Looks at a run before it begins: the pictures as the net sees them, and a search for the learning rate."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bridge.chain.functions import chainer
from bridge.errors import MissingExtraError, ModelError, OutputError
from bridge.extras import pip
from bridge.files.atomic import atomic
from bridge.finetuning import blas
from bridge.finetuning.config import Config
from bridge.finetuning.listener import Listener
from bridge.finetuning.loop import Loop
from bridge.finetuning.plan import make_plan

if TYPE_CHECKING:
    from bridge.finetuning.plan import Plan

_PICTURES = 24
_LOWEST, _HIGHEST, _STEPS = 1e-6, 10.0, 85
_WORSE = 3.0
"""The search ends where the smoothed loss is so many times that of the start."""
_SMOOTH = 0.8
"""The share of the losses before in a smoothed loss."""


@dataclass(frozen=True)
class DataSheet:
    """Pictures as the net sees them.

    Attributes:
        path: The sheet, a PNG.
        text: What their values are, for people.
    """

    path: Path
    text: str


@dataclass(frozen=True)
class RateSearch:
    """The losses of a short training whose learning rate rises at every step.

    Attributes:
        rates: The rate of each step.
        losses: The training loss of each step.
        suggestion: A tenth of the rate at which the smoothed loss was lowest; ``None`` where it never fell.
        path: The curve, a PNG; ``None`` where matplotlib is not installed.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None
    path: Path | None


def show_data(config: Config, listener: Listener | None = None) -> DataSheet:
    """Draw some training pictures as the net sees them: cut, mirrored, and with the mean taken off.

    Args:
        config: The settings of a run; its folder gets ``data.png`` and no run.
        listener: Whom it tells what it does.

    Raises:
        MissingExtraError: matplotlib is not installed.
        BridgeError: Whatever would keep the run from being started.
    """
    from bridge.finetuning import pictures

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("drawing needs matplotlib", hint=pip("finetune"))
    with blas.threads(config.threads):
        plan, _ = make_plan(config, (listener or Listener()).work)
    rng = np.random.default_rng([plan.recipe.seed, 4])
    chosen = np.sort(rng.permutation(len(plan.train))[: 1 if plan.train.fixed else _PICTURES])
    x = plan.images(plan.train, augmented=True).get(chosen, 0)[:_PICTURES]
    low, high = float(x.min()), float(x.max())
    png = pictures.sheet((x - low) / max(high - low, 1e-12), _titles(plan, chosen))
    path = _folder(config) / "data.png"
    with atomic(path) as file:
        file.write(png)
    order = ["grey"] if x.shape[1] == 1 else ["blue", "green", "red"] if x.shape[1] == 3 else []
    means = ", ".join(f"{value:.1f}" for value in x.mean(axis=(0, 2, 3)))
    named = f" ({', '.join(order)})" if len(order) == 3 else ""
    text = f"{len(x)} of {len(plan.train)} images, {x.shape[2]} x {x.shape[3]}: values from {low:.1f} to {high:.1f}"
    return DataSheet(path, f"{text}, mean {means}{named}, deviation {x.std():.1f}")


def _titles(plan: Plan, chosen: np.ndarray) -> list[str]:
    """The class, or the first of several labels, and the file of each picture."""
    data = plan.train
    labels = data.y[chosen[0]] if data.fixed else data.y[chosen]
    named = data.classes and labels.ndim == 1
    texts = [data.classes[int(y)] if named else " ".join(f"{v:g}" for v in np.ravel(y)[:3]) for y in labels]
    if not data.names:
        return texts
    return [f"{text}\n{Path(data.names[i]).name}" for text, i in zip(texts, chosen, strict=True)]


def find_rate(config: Config, listener: Listener | None = None) -> RateSearch:
    """Train for up to 85 steps with a rate that rises from 1e-6 to 10, and look where the loss falls.

    Args:
        config: The settings of a run; its folder gets ``find_lr.json`` and ``find_lr.png``, and no run.
        listener: Whom it tells what it does.

    Raises:
        ModelError: The first loss is not a finite number.
        BridgeError: Whatever would keep the run from being started.
    """
    listener = listener or Listener()
    with blas.threads(config.threads):
        plan, chain = make_plan(config, listener.work)
        loop = Loop.of(plan, chain, listener)
        rates, losses = _swept(loop, listener)
    low = _lowest(rates, losses)
    folder = _folder(config)
    with atomic(folder / "find_lr.json") as file:
        file.write(json.dumps({"rates": rates, "losses": losses, "suggestion": low}, indent=2).encode())
    path = None
    if importlib.util.find_spec("matplotlib") is not None:
        from bridge.finetuning import pictures

        path = folder / "find_lr.png"
        with atomic(path) as file:
            file.write(pictures.rate_search(rates, losses, smoothed(losses), low))
    return RateSearch(tuple(rates), tuple(losses), low, path)


def _swept(loop: Loop, listener: Listener) -> tuple[list[float], list[float]]:
    rates: list[float] = []
    losses: list[float] = []
    with chainer.using_config("type_check", False), loop.own_generator():
        loop.enter(loop.plan.stages[0])
        for step, rate in enumerate(np.geomspace(_LOWEST, _HIGHEST, _STEPS).tolist()):
            listener.work("trying rates", step, _STEPS)
            loss = float(loop.gradients(step)[0]["loss"])
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(loss)
            if smoothed(losses)[-1] > _WORSE * losses[0]:
                break
            loop.updater.update(rate)
    if not losses:
        raise ModelError("the first loss is no finite number", hint="check --mean and --scale")
    return rates, losses


def smoothed(losses: list[float]) -> list[float]:
    """Each loss as a mean of it and of those before, which count less the older they are."""
    made, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        made.append(mean / (1 - _SMOOTH**number))
    return made


def _lowest(rates: list[float], losses: list[float]) -> float | None:
    """A tenth of the rate with the lowest smoothed loss, as a round number; ``None`` where the loss never fell."""
    smooth = smoothed(losses)
    place = int(np.argmin(smooth))
    if not place or smooth[place] > 0.98 * losses[0]:
        return None
    return float(f"{rates[place] / 10:.0e}")


def _folder(config: Config) -> Path:
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=config.output) from None
    return config.folder
