"""What a run tells while it is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.finetuning.plan import Plan
    from bridge.finetuning.timing import Timing

Say = Callable[[str], None]
Work = Callable[[str, int, int], None]


def silent(*_: Any) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Listener:
    """Whom a run tells what it does; nothing that it computes depends on that.

    Attributes:
        step: Called after every step with its record as in the log, and beside: ``seconds`` and ``images`` of the step,
            ``iterations`` and ``epochs`` of the run, ``epoch_ends``, and ``best``: its epoch is the best so far.
        note: Called with each remark.
        work: Called in the course of work other than steps: what it is, how much is done, and how much there is, such
            as ``("decoding pictures", 40, 200)``.
        plan: Called before the first step with the plan and what it is expected to take; ``None`` measures nothing.
    """

    step: Callable[[dict[str, Any]], None] = silent
    note: Say = silent
    work: Work = silent
    plan: Callable[[Plan, Timing], None] | None = None
