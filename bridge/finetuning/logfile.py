"""The log of a run: one JSON object per step, one per line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from bridge.errors import FormatError, OutputError

LOG_FILE = "log.jsonl"


class LogFile:
    """The log while it is written.

    Args:
        folder: The run's folder.
        steps: Number of lines to keep; steps after the snapshot are done and written again.
        writes: Whether this process writes the log.

    Attributes:
        also: Is given each record, too.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, folder: Path, steps: int, writes: bool) -> None:
        self._path = folder / LOG_FILE
        self._writes = writes
        self._records: list[dict[str, Any]] = []
        self._flushed = 0.0
        self.also: Callable[[dict[str, Any]], None] = lambda record: None
        if writes:
            self._truncate(steps)

    def _truncate(self, steps: int) -> None:
        try:
            with open(self._path, "a+b") as file:
                file.seek(0)
                kept = sum(map(len, file.readlines()[:steps]))
                file.truncate(kept)
        except OSError as error:
            raise self._failure(error) from None

    def write(self, record: dict[str, Any], now: float) -> None:
        """Append a step's record. Records are written to the file about once per second.

        Args:
            record: Numbers by name; one that is not finite is ``null`` in the file.
            now: The time by :func:`time.perf_counter`, in seconds.
        """
        if self._writes:
            self._records.append(record)
            self.also(record)
            if now - self._flushed > 1:
                self.flush()

    def flush(self) -> None:
        """Write all records to the file."""
        self._flushed = time.perf_counter()
        if not self._records:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(map(_line, self._records)))
        except OSError as error:
            raise self._failure(error) from None
        self._records.clear()

    def __enter__(self) -> LogFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, OutputError):
            self.flush()

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot be written: {error.strerror or error}", where=str(self._path))


def _line(record: dict[str, Any]) -> str:
    """A flat record of numbers as JSON; :mod:`json` takes several times as long."""
    parts = [f'"{name}": {value!r}' if value - value == 0 else f'"{name}": null' for name, value in record.items()]
    return "{" + ", ".join(parts) + "}\n"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log; a number that was not finite is NaN.

    Raises:
        FormatError: A line is no JSON object.
    """
    path = folder / LOG_FILE
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{name: math.nan if value is None else value for name, value in r.items()} for r in records]
    except (ValueError, AttributeError) as error:
        raise FormatError(f"is no log: {error}", where=str(path)) from None
