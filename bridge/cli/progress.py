"""What a run shows while it is under way, on stderr: its plan, a line per epoch, and in a terminal a bar."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import printable

if TYPE_CHECKING:
    from bridge.finetuning.plan import Plan
    from bridge.finetuning.timing import Timing

_SPAN = 0.2
"""Seconds between two updates of the bar."""
_QUIET = 20.0
"""Seconds after which a log without a bar gets a line in the middle of an epoch."""


class Progress:
    """Lines on stderr; in a terminal also a bar with loss, accuracy, images per second and the remaining time.

    Args:
        hidden: Whether to show no bar, because stderr is not a terminal.
        quiet: Whether to show nothing at all.
    """

    def __init__(self, hidden: bool, quiet: bool = False) -> None:
        self._live: Any = None
        self._bar: Any = None
        self._text: Any = None
        self._hidden, self._quiet = hidden or quiet, quiet
        self._shown = self._images = 0.0
        self._said = time.perf_counter()
        self._epoch: list[dict[str, Any]] = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Print a remark; above the bar if there is one."""
        self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """Print a line; above the bar if there is one."""
        if self._quiet:
            return
        self._said = time.perf_counter()
        if self._live is None:
            click.echo(printable(text), err=True)
        else:
            self._live.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        sys.stderr.flush()

    def plan(self, plan: Plan, timing: Timing) -> None:
        """Print the plan."""
        for line in f"{plan}\n{timing}".splitlines():
            self.say(line)
        done = plan.recorded.iteration if plan.recorded is not None else 0
        if not self._hidden:
            self._start(plan.iterations, done)

    def work(self, what: str, done: int, total: int) -> None:
        """Show how far work other than steps is."""
        if self._live is not None:
            self._text.plain = f"{what}: {done} of {total}" if done < total else ""
        elif not done or (done < total and time.perf_counter() - self._said > _QUIET / 4):
            self.say(f"{what}: {done} of {total}")

    def step(self, record: dict[str, Any]) -> None:
        """Show a step; a line where an epoch ends."""
        self._epoch.append(record)
        self._images += record["images"]
        if record["epoch_ends"]:
            self.say(self._line())
            self._epoch.clear()
        elif self._hidden and time.perf_counter() - self._said > _QUIET:
            self.say(f"step {record['iteration'] + 1} of {record['iterations']}  {_summary(record)}")
        if not self._hidden:
            self._advance(record)

    def _line(self) -> str:
        """``epoch 3/10  loss 0.5122  88.9% right  held out: loss 0.4330  95.0% right  4.1 s  best so far``."""
        last, steps = self._epoch[-1], len(self._epoch)
        names = [name for name in ("loss", "accuracy") if name in last]
        mean: dict[str, Any] = {name: sum(record[name] for record in self._epoch) / steps for name in names}
        held = f"held out: {_summary(last, 'validation_')}" if "validation_loss" in last else ""
        seconds = f"{sum(record['seconds'] for record in self._epoch):.1f} s"
        best = "best so far" if last.get("best") else ""
        parts = [f"epoch {last['epoch'] + 1}/{last['epochs']}", _summary(mean), held, seconds, best]
        return "  ".join(filter(None, parts))

    def _advance(self, record: dict[str, Any]) -> None:
        if self._live is None or (record["iteration"] == 0 and self._bar.tasks[0].completed):
            self._start(record["iterations"], record["iteration"])
        now, done = time.perf_counter(), record["iteration"] + 1
        if now - self._shown < _SPAN and done < record["iterations"]:
            return
        rate = self._images / max(now - self._shown, 1e-9)
        self._shown, self._images = now, 0.0
        self._bar.update(self._bar.task_ids[0], completed=done, description=f"left  {rate:,.0f} images/s")
        self._text.plain = f"epoch {record['epoch'] + 1}  {_summary(record)}"

    def _start(self, total: int, done: int) -> None:
        self.__exit__(None, None, None)
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        columns = (BarColumn(32), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns)
        self._bar.add_task("", total=total, completed=done)
        self._text = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._bar, self._text), console=Console(stderr=True), refresh_per_second=1 / _SPAN)
        self._live.start()
        self._shown, self._images = time.perf_counter(), 0.0


def _summary(record: dict[str, Any], split: str = "") -> str:
    accuracy = record.get(f"{split}accuracy")
    return f"loss {record[f'{split}loss']:.4f}" + (f"  {accuracy:.1%} right" if accuracy is not None else "")
