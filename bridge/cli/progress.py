"""A progress bar for training, on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from bridge.cli import options, printable

_SPAN = 0.2
"""Seconds between two updates of the bar."""


class Progress:
    """A bar with loss, accuracy, images per second and the remaining time.

    Args:
        hidden: Whether to show no bar, for example because stderr is not a terminal.
        quiet: Whether to show no remarks either.
    """

    def __init__(self, hidden: bool, quiet: bool = False) -> None:
        self._live: Any = None
        self._bar: Any = None
        self._text: Any = None
        self._quiet = quiet
        self._shown = 0.0
        self._images = 0
        self._held = ""
        self.step = None if hidden else self._step

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print a remark; above the bar if there is one."""
        if self._quiet:
            return
        if self._live is None:
            options.note(text)
        else:
            self._live.console.print(f"note: {printable(text)}", markup=False, highlight=False)

    def _step(self, record: dict[str, Any]) -> None:
        """Advance the bar by a step."""
        if self._live is None or record["iteration"] == 0:
            self._start(record)
        self._images += record["images"]
        if "validation_loss" in record:
            self._held = f"held out {_summary(record, 'validation_')}"
        now, done = time.perf_counter(), record["iteration"] + 1
        if now - self._shown < _SPAN and done < record["iterations"] and "validation_loss" not in record:
            return
        rate = self._images / max(now - self._shown, 1e-9)
        self._shown, self._images = now, 0
        parts = [f"epoch {record['epoch'] + 1}", _summary(record), self._held]
        self._bar.update(self._bar.task_ids[0], completed=done, description=f"left  {rate:,.0f} images/s")
        self._text.plain = "  ".join(filter(None, parts))

    def _start(self, record: dict[str, Any]) -> None:
        self.__exit__(None, None, None)
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        columns = (BarColumn(32), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns)
        self._bar.add_task("", total=record["iterations"], completed=record["iteration"])
        self._text = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._bar, self._text), console=Console(stderr=True), refresh_per_second=1 / _SPAN)
        self._live.start()
        self._shown, self._images = time.perf_counter() - record["seconds"], 0


def _summary(record: dict[str, Any], split: str = "") -> str:
    accuracy = record.get(f"{split}accuracy")
    return f"loss {record[f'{split}loss']:.4f}" + (f"  {accuracy:.1%} right" if accuracy is not None else "")
