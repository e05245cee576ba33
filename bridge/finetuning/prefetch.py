"""The next batch, read, augmented and copied to the device by a thread while the device computes the present one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from bridge.chain.devices import Uploader
from bridge.finetuning.batches import Batch
from bridge.finetuning.cache import Features
from bridge.finetuning.sources import Source


class Ahead:
    """A source that has the expected batch ready.

    The thread only reads, decodes, augments and copies; nothing of the chain runs there. A batch does not depend on
    when it is read, so a run has the same values with and without it.

    Args:
        source: Images or cached features; a source that computes a trunk reads for itself.
        uploader: Copies to the device; ``None`` leaves the batch on the host.
    """

    def __init__(self, source: Source, uploader: Uploader | None = None) -> None:
        self._source, self._uploader = source, uploader
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._expected: tuple[bytes, int] | None = None
        self._future: Future[Features] | None = None

    @property
    def start(self) -> int:
        """Index of the first layer to compute."""
        return self._source.start

    def expect(self, batch: Batch) -> None:
        """Begin to read a batch."""
        if self._source.trunk is None or self._source.cache is not None:
            self._expected = _key(*batch)
            after = self._uploader.mark() if self._uploader is not None else None
            self._future = self._pool.submit(self._read, batch, after)

    def _read(self, batch: Batch, after: Any) -> Features:
        features = self._source.get(*batch)
        return features if self._uploader is None else self._uploader.send(features, after)

    def get(self, indices: np.ndarray, epoch: int) -> Features:
        """The blobs that the trained part reads, and the labels, by name."""
        future, expected = self._future, self._expected
        self._future = self._expected = None
        if future is not None:
            features = future.result()  # also where another batch is asked for: the images have one reader at a time
            if expected == _key(indices, epoch):
                return features
        return self._source.get(indices, epoch)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)


def _key(indices: np.ndarray, epoch: int) -> tuple[bytes, int]:
    return indices.tobytes(), epoch
