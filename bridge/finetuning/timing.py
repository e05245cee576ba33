"""How long a run is expected to take, measured on a few of its images.

A clock prints and decides about nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.functions import chainer
from bridge.finetuning.sources import Source
from bridge.finetuning.stages import Stage, freeze_layers
from bridge.finetuning.trunk import Trunk

if TYPE_CHECKING:
    from bridge.finetuning.plan import Plan

_IMAGES = 4
_ENOUGH = 0.3
"""Seconds of a measurement that is not repeated: the first one has work that later steps have not."""
_CHECK = 0.4
"""Time of a forward pass, as a share of forward and backward pass."""


@dataclass(frozen=True)
class Timing:
    """Seconds that a run is expected to take.

    Attributes:
        trunk: For one image in the frozen trunk.
        step: For one image in the trained part, forward and backward.
        features: For all features that are computed once.
        total: For the run.
    """

    trunk: float
    step: float
    features: float
    total: float

    def __str__(self) -> str:
        parts = [f"{self.step:.2g} s per image and epoch in the trained layers"]
        if self.trunk:
            parts.insert(0, f"{self.trunk:.2g} s per image in the trunk")
        first = f", {span(self.features)} of them for the trunk" if self.features >= 1 else ""
        return f"measured: {', '.join(parts)}\nexpected: about {span(self.total)}{first}"


def span(seconds: float) -> str:
    """A time for people: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def measured(plan: Plan, chain: NetChain) -> Timing:
    """Measure a forward and a backward pass of each stage on a few images; no parameter and no statistic changes."""
    ends = [*(stage.start for stage in plan.stages[1:]), plan.iterations]
    costs, features, total = [], 0.0, 0.0
    for stage, end in zip(plan.stages, ends, strict=True):
        freeze_layers(plan.net, chain, stage.frozen, plan.still)
        trunk, step = _stage(plan, chain, stage)
        costs.append((trunk, step))
        seen = max(0, min(end, plan.iterations) - stage.start) * plan.images_per_step / plan.ranks.size
        checks = len(plan.validation or ()) * seen / max(1, plan.batches.per_epoch * plan.batches.size)
        cached = bool(trunk) and plan.config.cache and not plan.train.fixed and (
            not plan.preprocess.random or plan.config.augment_cache > 0
        )  # fmt: skip
        once = (len(plan.train) * max(1, plan.config.augment_cache) + len(plan.validation or ())) * trunk
        features += once if cached and seen else 0.0
        total += seen * (step + (0.0 if cached else trunk)) + checks * step * _CHECK + (once if cached and seen else 0)
    return Timing(*costs[0], features, total)


def _stage(plan: Plan, chain: NetChain, stage: Stage) -> tuple[float, float]:
    """Seconds per image in the trunk and in the trained part."""
    trunk = None
    if stage.cut is not None and stage.trunk is not None:
        trunk = Trunk(chain, stage.cut, plan.objective.data, stage.trunk.onnx)
    source = Source(plan.images(plan.train, augmented=False), plan.objective, trunk)
    indices = np.arange(1 if plan.train.fixed else min(_IMAGES, len(plan.train)))
    plain = Source(source.images, plan.objective)
    for again in (False, True):
        start = time.perf_counter()
        features = source.get(indices, 0)
        middle = time.perf_counter()
        _pass(plan, chain, source, features)
        end = time.perf_counter()
        if again or end - start > _ENOUGH:
            break
    images = len(features[plan.objective.label])
    read = time.perf_counter()
    plain.get(indices, 0)  # what it takes to get the pixels
    read = time.perf_counter() - read
    return (max(0.0, middle - start - read) / images if trunk else 0.0), (end - middle) / images


def _pass(plan: Plan, chain: NetChain, source: Source, features: dict[str, Any]) -> None:
    """A forward pass in test mode, and a backward pass whose gradients are dropped."""
    from bridge.finetuning.evaluation import run_features

    with chainer.using_config("train", False):
        values, _ = run_features(chain, plan.objective, source, features)
        plan.objective(values).backward()
    chain.cleargrads()
    if chain.xp is not np:
        chain.xp.cuda.Stream.null.synchronize()
