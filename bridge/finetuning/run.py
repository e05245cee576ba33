"""A fine-tuning run, from files to products: plan, loop, outcome, products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.chain import devices
from bridge.chain.build import NetChain
from bridge.finetuning import blas
from bridge.finetuning.config import Config, open_folder
from bridge.finetuning.data import Data
from bridge.finetuning.evaluation import Evaluation
from bridge.finetuning.loop import Loop
from bridge.finetuning.outcome import Outcome
from bridge.finetuning.plan import Plan, make_plan
from bridge.finetuning.preprocess import ImageTransform
from bridge.finetuning.stages import Say
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.finetuning.products import Products


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        plan: What was decided before the first step.
        chain: The trained chain, with the model's values.
        outcome: The steps' history, the best epoch and the evaluation.
        products: The files that were written; ``None`` in ranks other than 0.
    """

    plan: Plan
    chain: NetChain
    outcome: Outcome
    products: Products | None = None

    @property
    def config(self) -> Config:
        """The settings."""
        return self.plan.config

    @property
    def net(self) -> Net:
        """The net that was trained, as it was before."""
        return self.plan.net

    @property
    def train(self) -> Data:
        """The training data."""
        return self.plan.train

    @property
    def validation(self) -> Data | None:
        """The validation data, if there are any."""
        return self.plan.validation

    @property
    def preprocess(self) -> ImageTransform:
        """How images become inputs."""
        return self.plan.preprocess

    @property
    def resize(self) -> tuple[int, int]:
        """(height, width) that pictures are brought to."""
        return self.plan.resize

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation of the model on the validation data."""
        return self.outcome.evaluation

    @property
    def notes(self) -> list[str]:
        """Remarks for the user, one line each."""
        return [*self.plan.notes, *(self.products.notes if self.products is not None else ())]


def finetune(
    config: Config,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_note: Say = lambda note: None,
) -> Run:
    """Fine-tune a net and write the products into the run's folder.

    What a run computes follows from its settings, the data, the processor and the installed packages: two runs with
    the same seed end in the same bits, on the CPU.

    Args:
        config: The settings.
        on_step: Called after every step with its record.
        on_note: Called with each remark as it comes up.

    Returns:
        The finished run.

    Raises:
        BridgeError: Whatever ends the run early, in one line; snapshots that were saved are kept.
    """
    from bridge.finetuning.products import write_products

    with blas.threads(config.threads), devices.scope(config.device):
        loop = begin(config, on_step, on_note)
        run = Run(loop.plan, loop.chain, loop.run())
        if not loop.plan.ranks.first:
            return run
        return dataclasses.replace(run, products=write_products(run))


def begin(
    config: Config,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_note: Say = lambda note: None,
) -> Loop:
    """Everything up to the first step: the plan, the run's folder, and the loop.

    Raises:
        BridgeError: Whatever keeps the run from being started; then no folder is made.
    """
    with blas.threads(config.threads), devices.scope(config.device):
        plan, chain = make_plan(config)
        loop = Loop.of(plan, chain, on_step, on_note)
    for note in plan.notes:
        on_note(note)
    if plan.ranks.first:
        open_folder(config)  # now that nothing keeps the run from being started
    return loop
