"""A fine-tuning run, from files to products: plan, loop, outcome, products."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.chain import devices
from bridge.chain.build import NetChain
from bridge.finetuning import blas
from bridge.finetuning.config import SETTINGS, Config, check_folder, open_folder
from bridge.finetuning.data import Data
from bridge.finetuning.evaluation import Evaluation
from bridge.finetuning.listener import Listener, silent
from bridge.finetuning.lock import RunLock
from bridge.finetuning.loop import Loop
from bridge.finetuning.material import Material
from bridge.finetuning.outcome import Outcome
from bridge.finetuning.parallel import world
from bridge.finetuning.plan import Plan, make_plan
from bridge.finetuning.preprocess import ImageTransform
from bridge.finetuning.stages import freeze_layers
from bridge.finetuning.timing import measured
from bridge.finetuning.verdict import Verdict, judge
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.finetuning.products import Products


_FILES = Material()


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        found = f", {self.evaluation}" if self.evaluation is not None else ""
        return f"<Run in {self.config.output}: {self.outcome.iterations} iterations{found}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the outcome, the remarks, and the curves where they were drawn."""
        from bridge.show import html

        curves = self.config.folder / "curves.png"
        drawn = html.image(curves.read_bytes(), "loss and accuracy over epochs") if curves.is_file() else None
        return html.fragment(html.tag("b", repr(self)), html.facts(("note", note) for note in self.notes), drawn)

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
    def history(self) -> tuple[dict[str, Any], ...]:
        """The record of each step, as in ``log.jsonl``."""
        return self.outcome.history

    @property
    def files(self) -> Mapping[str, Path]:
        """Name -> path of each file that was written, such as ``model.onnx``; empty in ranks other than 0."""
        return self.products.files if self.products is not None else {}

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Whether the model is better than guessing."""
        return judge(self.plan, self.outcome)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user, one line each."""
        return [*self.plan.notes, *(self.products.notes if self.products is not None else ())]


def execute(
    config: Config,
    listener: Listener | None = None,
    on_folder: Callable[[Path], None] = silent,
    material: Material = _FILES,
) -> Run:
    """Do a run, from its settings to its products.

    Args:
        config: The settings.
        listener: Whom the run tells what it does; nobody by default.
        on_folder: Called with the run's folder when it is there and nothing keeps the run from being started.
        material: A net and data in memory, in place of those that the settings name.

    Returns:
        The finished run.

    Raises:
        BridgeError: Whatever ends the run early, in one line; snapshots that were saved are kept.
    """
    from bridge.finetuning.products import write_products

    with blas.threads(config.threads), devices.scope(config.device), _lock(config) as lock:
        loop = begin(config, listener, lock, material)
        if loop.plan.ranks.first:
            on_folder(config.folder)
        run = Run(loop.plan, loop.chain, loop.run())
        if not loop.plan.ranks.first:
            return run
        return dataclasses.replace(run, products=write_products(run))


def _lock(config: Config) -> contextlib.AbstractContextManager[RunLock | None]:
    """The folder's lock, in the process that writes there."""
    return RunLock(config.folder, SETTINGS) if _is_first(config) else contextlib.nullcontext()


def _is_first(config: Config) -> bool:
    """Whether this is the process that writes files."""
    return not config.communicator or world().rank == 0


def begin(
    config: Config, listener: Listener | None = None, lock: RunLock | None = None, material: Material = _FILES
) -> Loop:
    """Everything up to the first step: the plan, the run's folder, and the loop.

    Args:
        config: The settings.
        listener: Whom the run tells what it does.
        lock: Keeps other runs out of the folder.
        material: A net and data in memory, in place of those that the settings name.

    Raises:
        BridgeError: Whatever keeps the run from being started; then no folder is made.
    """
    listener = listener or Listener()
    if _is_first(config):
        check_folder(config)
    with blas.threads(config.threads), devices.scope(config.device):
        plan, chain = make_plan(config, listener.work, material)
        loop = Loop.of(plan, chain, listener)
        for note in plan.notes:
            listener.note(note)
        if listener.plan is not None:
            listener.plan(plan, measured(plan, chain))
            freeze_layers(plan.net, chain, plan.stages[-1].frozen, plan.still)
    if plan.ranks.first:
        open_folder(config, lock)  # now that nothing keeps the run from being started
    return loop
