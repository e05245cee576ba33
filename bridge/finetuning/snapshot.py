"""Snapshots: the whole state of a run in one file, which appears whole or not at all.

Order, augmentation and dropout follow from the seed, the epoch and the iteration. So the state is
the trained arrays, the optimizer and a few numbers. Arrays that are frozen to the end are in the
model's own files, or follow from the seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.chain.devices import to_host
from bridge.chain.freezing import is_frozen
from bridge.chain.functions import chainer
from bridge.errors import FormatError
from bridge.files.atomic import atomic
from bridge.finetuning.cache import digest

SNAPSHOT_FILE = "snapshot.npz"
BEST = "best.npz"
RESUME_HINT = "start over without --resume in another folder"
_STATE, _RULES = "__state__", "__rules__"


@dataclass
class State:
    """Where a run is: what a snapshot holds beside arrays.

    Attributes:
        iteration: Steps that are done.
        best: The validation loss of the best epoch; ``None`` before the first evaluation.
        best_epoch: The epoch with the highest accuracy on held-out images, of several the one with the lowest loss, and
            of those the first; counted from 0.
        best_accuracy: Its accuracy; ``None`` without classes.
        stopped: Whether the run ended early, by ``patience``.
        data: Digests of the training and the validation data.
        engines: The trunk's engine in each stage of the run; empty where a stage has no trunk.
        software: What computes, with versions, such as ``numpy 2.2.0``.
        ranks: Processes that train together.
        frozen: Digest of the arrays that training does not change.
        loss_scale: Factor on the loss in float16; 0 elsewhere.
        calm: Steps without an overflow since it was changed.
    """

    iteration: int = 0
    best: float | None = None
    best_epoch: int = -1
    best_accuracy: float | None = None
    stopped: bool = False
    data: list[str] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    software: list[str] = field(default_factory=list)
    ranks: int = 1
    frozen: str = ""
    loss_scale: float = 0.0
    calm: int = 0

    def is_better(self, loss: float, accuracy: float | None) -> bool:
        """Whether an epoch with these results is better than the best one before."""
        if not math.isfinite(loss):
            return False
        return self.best is None or (accuracy or 0.0, -loss) > (self.best_accuracy or 0.0, -self.best)


class Trained:
    """The arrays of a chain that training changes: parameters that are not frozen now, and running statistics."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain
        self._places: dict[str, tuple[Any, str]] = {}
        for path, link in sorted(chain.namedlinks()):
            params = [name for name in sorted(link._params) if not is_frozen(getattr(link, name))]
            arrays = [name for name in sorted(link._persistent) if isinstance(getattr(link, name), chain.xp.ndarray)]
            self._places.update((f"chain{path}/{name}", (link, name)) for name in params + arrays)

    @property
    def nbytes(self) -> int:
        """Their size in bytes, all together."""
        values = [getattr(link, name) for link, name in self._places.values()]
        return sum(int(value.size * value.dtype.itemsize) for value in values)

    def copies(self) -> dict[str, np.ndarray]:
        """Copies of them, by path; of a parameter that is kept as float16, its float32 original."""
        values = {key: getattr(link, name) for key, (link, name) in self._places.items()}
        return {key: np.array(to_host(_precise(value))) for key, value in values.items()}

    def digest_of_others(self) -> str:
        """SHA-256 of the chain's other arrays: frozen parameters, and running statistics as they are now."""
        others = [
            (f"chain{path}/{name}", to_host(getattr(getattr(link, name), "array", getattr(link, name))))
            for path, link in sorted(self._chain.namedlinks())
            for name in sorted({*link._params, *link._persistent})
            if is_frozen(getattr(link, name)) or name in link._persistent
        ]
        return digest(*(part for pair in others for part in pair))

    def statistics(self) -> dict[str, np.ndarray]:
        """Copies of the running statistics, by path."""
        values = {key: getattr(link, name) for key, (link, name) in self._places.items()}
        chosen = {key: value for key, value in values.items() if not isinstance(value, chainer.Parameter)}
        return {key: np.array(to_host(value)) for key, value in chosen.items()}

    def moving(self) -> dict[str, Any]:
        """Copies, on the chain's device, of the running statistics that a forward pass in training changes."""
        values = {k: getattr(link, name) for k, (link, name) in self._places.items() if not link.frozen}
        return {key: value.copy() for key, value in values.items() if not isinstance(value, chainer.Parameter)}

    def put_back(self, moving: Mapping[str, Any]) -> None:
        """The opposite of :meth:`moving`."""
        for key, value in moving.items():
            setattr(*self._places[key], value)

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The opposite of :meth:`copies`.

        Raises:
            KeyError: One is missing.
            ValueError: One has another shape.
        """
        xp = self._chain.xp
        for key, (link, name) in self._places.items():
            value, new = getattr(link, name), arrays[key]
            if new.shape != value.shape:
                raise ValueError(f"{key} has another shape")
            if not isinstance(value, chainer.Parameter):
                setattr(link, name, xp.asarray(new, dtype=value.dtype))
                continue
            value.array[...] = xp.asarray(new, dtype=value.dtype)
            if value.dtype == np.float16:
                value.update_rule._fp32_param = chainer.Parameter(xp.asarray(new))


def _rules(optimizer: Any) -> list[tuple[str, Any]]:
    return [(path, param.update_rule) for path, param in sorted(optimizer.target.namedparams())]


def _numbers(optimizer: Any) -> dict[str, dict[str, float]]:
    """Numbers that some of Chainer's update rules keep and do not serialize (MSVAG's ``beta_power``)."""
    return {
        path: {name: value for name, value in vars(rule).items() if isinstance(value, float)}
        for path, rule in _rules(optimizer)
    }


def put_into(chain: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into a chain on the CPU; its other arrays stay as they are."""
    for path, link in chain.namedlinks():
        for name in (*link._params, *link._persistent):
            new = arrays.get(f"chain{path}/{name}")
            if new is not None:
                value = getattr(link, name)
                getattr(value, "array", value)[...] = new


def _precise(value: Any) -> Any:
    original = getattr(getattr(value, "update_rule", None), "_fp32_param", None)
    return getattr(value if original is None else original, "array", value)


def save_snapshot(path: Path, arrays: Mapping[str, np.ndarray], state: State, optimizer: Any = None) -> None:
    """Write a snapshot.

    Args:
        path: The file.
        arrays: The trained arrays, by path.
        state: Where the run is.
        optimizer: The optimizer, with its histories.

    Raises:
        OutputError: It cannot be written; the snapshot before stays.
    """
    text = json.dumps(dataclasses.asdict(state))
    stored: dict[str, Any] = {_STATE: np.frombuffer(text.encode(), np.uint8), **arrays}
    if optimizer is not None:
        serializer = chainer.serializers.DictionarySerializer(path="optimizer/")
        serializer.save(optimizer)
        stored[_RULES] = np.frombuffer(json.dumps(_numbers(optimizer)).encode(), np.uint8)
        stored.update((key, np.asarray(value)) for key, value in serializer.target.items())
    with atomic(path) as file:
        np.savez(file, **stored)


def read_state(path: Path) -> State | None:
    """The state of a snapshot; ``None`` where there is no file.

    Raises:
        FormatError: It is damaged, or no snapshot.
    """
    if not path.exists():
        return None
    with _damage_named(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return _state(archive)


def load_snapshot(path: Path, content: bytes = b"", optimizer: Any = None) -> tuple[State, dict[str, np.ndarray]]:
    """The state and the arrays of a snapshot; the optimizer gets its histories back.

    Args:
        path: The file.
        content: Its bytes, where another process has read it.
        optimizer: The optimizer, if any.

    Raises:
        FormatError: It is damaged, or of another net or optimizer.
    """
    with (
        _damage_named(path),
        io.BytesIO(content) if content else open(path, "rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        arrays = {key: archive[key] for key in archive.files if not key.startswith(("optimizer/", "__"))}
        if optimizer is not None:
            # not strict: a parameter that was never updated has no history to load
            chainer.serializers.NpzDeserializer(archive, strict=False)["optimizer"].load(optimizer)
            numbers = json.loads(archive[_RULES].tobytes())
            for name, rule in _rules(optimizer):
                vars(rule).update(numbers.get(name, {}))
        return _state(archive), arrays


def _state(archive: Any) -> State:
    return State(**json.loads(archive[_STATE].tobytes()))


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into one error that names the file."""
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"is no snapshot of this run: {error}", where=str(path), hint=RESUME_HINT) from None
