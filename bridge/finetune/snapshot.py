"""Snapshots: all that a run is, in one file that appears whole or not at all.

A run draws no random number that does not follow from its seed, the epoch and the
iteration, so that parameters, optimizer and iteration are its whole state.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.errors import FormatError
from bridge.writers import atomic

NAME = "snapshot.npz"


def save(path: Path, chain: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Write a snapshot.

    Args:
        path: The file.
        chain: The chain, with its statistics.
        optimizer: The optimizer, with its histories.
        state: Plain data: iteration, best result, key of the cache.
    """
    serializer = chainer.serializers.DictionarySerializer()
    serializer["chain"].save(chain)
    serializer["optimizer"].save(optimizer)
    buffer = io.BytesIO()
    arrays = {key.lstrip("/"): np.asarray(value) for key, value in serializer.target.items()}
    np.savez(buffer, __state__=np.frombuffer(json.dumps(state).encode(), np.uint8), **arrays)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, chain: Any, optimizer: Any) -> dict[str, Any]:
    """Read a snapshot into a chain and an optimizer; returns its state.

    Raises:
        FormatError: The file is damaged, or is of another net or optimizer.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            state: dict[str, Any] = json.loads(archive["__state__"].tobytes())
            chainer.serializers.NpzDeserializer(archive)["chain"].load(chain)
            # not strict: a parameter that was never updated has no history to load
            chainer.serializers.NpzDeserializer(archive, strict=False)["optimizer"].load(optimizer)
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise FormatError(
            f"is no snapshot of this run: {error}", where=str(path), hint="start over without --resume in another folder"
        ) from None
    return state
