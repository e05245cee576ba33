"""When a run saves a snapshot, what is in it, and how a run is restored from it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import FormatError
from bridge.finetuning import snapshot
from bridge.finetuning.parallel import Ranks
from bridge.finetuning.snapshot import State, Trained

_SPARE = 50
"""Minimum pause between automatic snapshots, as a multiple of the time that one takes."""
_MOMENT = 2.0
"""Minimum pause in seconds."""
_DISK = 5e8
"""Bytes per second that the first snapshot is expected to be written with."""


class Saver:
    """Saves snapshots of a run, and restores the run from them.

    When a snapshot is saved changes nothing in what the run computes.

    Args:
        folder: The run's folder.
        trained: The arrays that training changes.
        optimizer: The optimizer.
        ranks: The processes that train together.
        every: Steps between snapshots; 0 saves one as often as it costs little time.
    """

    def __init__(self, folder: Path, trained: Trained, optimizer: Any, ranks: Ranks, every: int) -> None:
        self._folder, self._trained, self._optimizer = folder, trained, optimizer
        self._ranks, self._every = ranks, every
        self._best: dict[str, np.ndarray] = {}
        self._next = time.perf_counter() + max(_MOMENT, _SPARE * 2 * trained.nbytes / _DISK)

    def is_due(self, iteration: int, epoch_ends: bool, now: float) -> bool:
        """Whether to save a snapshot after this many steps."""
        if self._every:
            return iteration % self._every == 0
        return now >= self._next if self._ranks.size == 1 else epoch_ends  # clocks of processes differ, epochs do not

    def save(self, state: State, best: dict[str, np.ndarray]) -> None:
        """Save a snapshot.

        Args:
            state: Where the run is.
            best: The trained arrays of the best epoch; they are saved where they are new.

        Raises:
            OutputError: It cannot be written; the snapshot before stays.
        """
        start = time.perf_counter()
        statistics = self._ranks.gathered(self._trained.statistics()) if self._ranks.size > 1 else []
        if self._ranks.first:
            if best and best is not self._best:  # first: where it is newer than the snapshot, the epoch is done again
                snapshot.save_snapshot(self._folder / snapshot.BEST, best, state)
                self._best = best
            arrays = self._trained.copies()
            for rank, own in enumerate(statistics[1:], 1):
                arrays.update({_of_rank(rank, key): values for key, values in own.items()})
            snapshot.save_snapshot(self._folder / snapshot.SNAPSHOT_FILE, arrays, state, self._optimizer)
        self._next = time.perf_counter() + max(_MOMENT, _SPARE * (time.perf_counter() - start))

    def restore(self) -> tuple[State, dict[str, np.ndarray]] | None:
        """Restore the trained arrays and the optimizer.

        Returns:
            The state, and the arrays of the best epoch; ``None`` where there is no snapshot.

        Raises:
            FormatError: The snapshot is damaged, or of another net or optimizer.
        """
        path, ranks = self._folder / snapshot.SNAPSHOT_FILE, self._ranks
        content = ranks.broadcast(path.read_bytes() if path.exists() else b"") if ranks.size > 1 else b""
        if not content and not (ranks.size == 1 and path.exists()):
            return None
        state, arrays = snapshot.load_snapshot(path, content, self._optimizer)
        arrays.update(_statistics(arrays, self._trained.statistics(), state.ranks, ranks))
        state.ranks = ranks.size
        try:
            self._trained.fill(arrays)
        except (KeyError, ValueError) as error:
            hint = snapshot.RESUME_HINT
            raise FormatError(f"is no snapshot of this run: {error}", where=str(path), hint=hint) from None
        best = self._folder / snapshot.BEST
        if ranks.first and state.best is not None and best.exists():
            newer, self._best = snapshot.load_snapshot(best)
            # Where it is newer than the snapshot, its epoch is done again and may come out otherwise, on a GPU.
            state.best, state.best_epoch, state.best_accuracy = newer.best, newer.best_epoch, newer.best_accuracy
        found = ranks.broadcast((state.best, state.best_epoch, state.best_accuracy))  # all stop in the same epoch
        state.best, state.best_epoch, state.best_accuracy = found
        return state, self._best


def _statistics(
    arrays: Mapping[str, np.ndarray], names: Iterable[str], before: int, ranks: Ranks
) -> dict[str, np.ndarray]:
    """A rank's running statistics in a snapshot; with another number of ranks than ``before``, the mean of all."""
    found = {}
    for key in names:
        kept = [arrays[key], *(arrays[_of_rank(rank, key)] for rank in range(1, before))]
        found[key] = kept[ranks.rank] if before == ranks.size else np.mean(kept, 0, np.float64).astype(kept[0].dtype)
    return found


def _of_rank(rank: int, key: str) -> str:
    """The name of another rank's running statistic in a snapshot."""
    return f"rank{rank}/{key}"
