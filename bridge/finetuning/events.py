"""Event files for TensorBoard, where the package ``tensorboardX`` is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bridge.errors import OutputError

EVENTS = "tensorboard"
"""The folder of event files in a run's folder."""
_PACKAGE = "tensorboardX"
_PLACES = ("iteration", "epoch")
"""What a record says of where the run is; the rest is drawn."""

Write = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def event_files(folder: Path, steps: int, writes: bool) -> Iterator[Write]:
    """A function that writes a step's record, as in the log, into the run's event files.

    Args:
        folder: The run's folder.
        steps: Number of steps that are kept of a run that is resumed.
        writes: Whether this process writes files.

    Raises:
        OutputError: The files cannot be written.
    """
    if not writes or importlib.util.find_spec(_PACKAGE) is None:
        yield lambda record: None
        return
    place = folder / EVENTS
    try:
        writer = importlib.import_module(_PACKAGE).SummaryWriter(str(place), purge_step=steps or None)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(place)) from None

    def write(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name not in _PLACES:
                writer.add_scalar(name, value, record["iteration"])

    try:
        yield write
    finally:
        writer.close()
