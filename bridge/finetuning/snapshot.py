"""Snapshots: all that a run is, in one file that appears whole or not at all.

Order and augmentation follow from the seed and the epoch, so that what is trained, the
optimizer, the iteration and the generator that dropout draws from are the whole state.
What stays frozen to the end is in the model's own files, or follows from the seed.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridge.chain.freezing import is_frozen
from bridge.chain.functions import chainer
from bridge.errors import FormatError
from bridge.files.atomic import atomic

NAME = "snapshot.npz"
BEST = "best.npz"
HINT = "start over without --resume in another folder"
_STATE, _RULES = "__state__", "__rules__"


class Trained:
    """The arrays of a chain that training moves: parameters that are not frozen now, and running statistics."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain
        self._places: dict[str, tuple[Any, str]] = {}
        for path, link in sorted(chain.namedlinks()):
            params = [name for name in sorted(link._params) if not is_frozen(getattr(link, name))]
            arrays = [name for name in sorted(link._persistent) if isinstance(getattr(link, name), chain.xp.ndarray)]
            self._places.update((f"chain{path}/{name}", (link, name)) for name in params + arrays)

    @property
    def nbytes(self) -> int:
        """Bytes that they have together."""
        values = [getattr(link, name) for link, name in self._places.values()]
        return sum(int(value.size * value.dtype.itemsize) for value in values)

    def copies(self) -> dict[str, np.ndarray]:
        """Copies of them, by path; of a parameter that is kept as float16, its float32 original."""
        values = {key: getattr(link, name) for key, (link, name) in self._places.items()}
        return {key: np.array(_to_cpu(_precise(value))) for key, value in values.items()}

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
    """What some of Chainer's update rules count without telling a serializer (MSVAG's ``beta_power``)."""
    return {
        path: {name: value for name, value in vars(rule).items() if isinstance(value, float)}
        for path, rule in _rules(optimizer)
    }


def put_into(chain: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill those arrays of a chain on the CPU that are there."""
    for path, link in chain.namedlinks():
        for name in (*link._params, *link._persistent):
            new = arrays.get(f"chain{path}/{name}")
            if new is not None:
                value = getattr(link, name)
                getattr(value, "array", value)[...] = new


def _precise(value: Any) -> Any:
    original = getattr(getattr(value, "update_rule", None), "_fp32_param", None)
    return getattr(value if original is None else original, "array", value)


def generator() -> dict[str, np.ndarray]:
    """The state of NumPy's own generator, which Chainer draws from on the CPU."""
    _, key, place, has_gauss, gauss = np.random.get_state(legacy=True)
    return {"random/key": np.asarray(key), "random/rest": np.array([place, has_gauss, gauss], np.float64)}


def set_generator(arrays: Mapping[str, np.ndarray]) -> None:
    """The opposite of :func:`generator`.

    Raises:
        KeyError: The state is not there.
        ValueError: It is none.
    """
    place, has_gauss, gauss = arrays["random/rest"].tolist()
    np.random.set_state(("MT19937", arrays["random/key"], int(place), int(has_gauss), gauss))


def _to_cpu(array: Any) -> Any:
    return chainer.backends.cuda.to_cpu(array)


def save(path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], optimizer: Any = None) -> None:
    """Write a snapshot.

    Args:
        path: The file.
        arrays: What is trained.
        state: Plain data: iteration, best result, and what the data were.
        optimizer: The optimizer, with its histories.

    Raises:
        OutputError: It cannot be written; the one before stays.
    """
    stored: dict[str, Any] = {_STATE: np.frombuffer(json.dumps(state).encode(), np.uint8), **arrays}
    if optimizer is not None:
        serializer = chainer.serializers.DictionarySerializer(path="optimizer/")
        serializer.save(optimizer)
        stored[_RULES] = np.frombuffer(json.dumps(_numbers(optimizer)).encode(), np.uint8)
        stored.update((key, np.asarray(_to_cpu(value))) for key, value in serializer.target.items())
    with atomic(path) as file:
        np.savez(file, **stored)


def load(path: Path, content: bytes = b"", optimizer: Any = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state and the arrays of a snapshot; its histories go into the optimizer.

    Args:
        path: The file.
        content: Its bytes, where another process has read it.
        optimizer: The optimizer, if any.

    Raises:
        FormatError: It is damaged, or of another net or optimizer.
    """
    try:
        with (
            io.BytesIO(content) if content else open(path, "rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            state: dict[str, Any] = json.loads(archive[_STATE].tobytes())
            arrays = {key: archive[key] for key in archive.files if not key.startswith(("optimizer/", "__"))}
            if optimizer is not None:
                # not strict: a parameter that was never updated has no history to load
                chainer.serializers.NpzDeserializer(archive, strict=False)["optimizer"].load(optimizer)
                numbers = json.loads(archive[_RULES].tobytes())
                for name, rule in _rules(optimizer):
                    vars(rule).update(numbers.get(name, {}))
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"is no snapshot of this run: {error}", where=str(path), hint=HINT) from None
    return state, arrays
