"""Training data: where images and labels come from, and how they are split."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import BridgeError, FormatError, MissingExtraError, MissingFileError, UsageError
from bridge.finetune.images import SUFFIXES, decode_all
from bridge.schema import times


@dataclass(frozen=True)
class Data:
    """Images and labels.

    Attributes:
        x: (N, C, H, W) uint8 or float32; for ``fixed`` batches (batches, N, C, H, W).
        y: Labels, int64 (N), or (batches, N).
        classes: The classes' names; empty where the data has none.
        names: Where each image came from; empty where it has no name.
        fixed: Whether the first axis is a sequence of batches, to be taken in order.
        notes: Remarks, such as images that could not be read.
    """

    x: Any
    y: np.ndarray
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    fixed: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: np.ndarray) -> Data:
        """The images at ``indices``."""
        names = tuple(self.names[i] for i in indices) if self.names else ()
        return Data(self.x[indices], self.y[indices], self.classes, names, self.fixed)

    def digest(self) -> str:
        """SHA-256 over images and labels, for the key of a cache."""
        made = hashlib.sha256(np.ascontiguousarray(self.y))
        made.update(repr((self.x.shape, str(self.x.dtype))).encode())
        for start in range(0, len(self.x), 256):
            made.update(np.ascontiguousarray(self.x[start : start + 256]))
        return made.hexdigest()


@dataclass(frozen=True)
class Loading:
    """How files become arrays.

    Attributes:
        shape: (C, H, W) of the net's input.
        resize: (height, width) that pictures are brought to.
        workers: Processes that decode pictures.
        max_bad: How many pictures may be unreadable.
    """

    shape: tuple[int, int, int]
    resize: tuple[int, int]
    workers: int = 2
    max_bad: int = 0


def load_data(source: str, loading: Loading, classes: Sequence[str] = ()) -> Data:
    """Data from a folder per class, an .npz, a list of ``path label`` lines, or ``module:function``.

    Args:
        source: The path, or the callable's name; the callable returns (x, y) or a :class:`Data`.
        loading: How files become arrays.
        classes: The classes' names where they are known already, so that a validation
            folder counts them alike.

    Raises:
        MissingFileError: It does not exist.
        FormatError: It is not what it seems, or too many pictures are unreadable.
        UsageError: It is none of these kinds.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path, loading, classes)
    if path.suffix == ".npz" and path.exists():
        return _arrays(path, loading)
    if path.is_file():
        return _list_file(path, loading)
    if ":" in source and not path.exists():
        return _callable(source, loading)
    raise MissingFileError("does not exist", where=source, hint="a folder per class, .npz, list file or module:function")


def _folder(root: Path, loading: Loading, classes: Sequence[str]) -> Data:
    names = tuple(classes) or tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    if not names:
        raise FormatError("has no folders, expected one per class", where=str(root))
    paths, labels = [], []
    for label, name in enumerate(names):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
    return _pictures(root, paths, labels, names, loading)


def _list_file(path: Path, loading: Loading) -> Data:
    """Caffe's image list. Source: image_data_layer.cpp: the label is behind the last space."""
    paths, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not label.isdigit():
            raise FormatError(f"expected 'path label', found {line[:60]!r}", where=f"{path}:{number}")
        paths.append(path.parent / name)
        labels.append(int(label))
    return _pictures(path, paths, labels, (), loading)


def _pictures(
    source: Path, paths: Sequence[Path], labels: Sequence[int], classes: tuple[str, ...], loading: Loading
) -> Data:
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("reading pictures needs Pillow", hint="pip install 'weight-bridge[plot]'")
    if not paths:
        raise FormatError("has no pictures", where=str(source), hint=f"endings: {', '.join(sorted(SUFFIXES))}")
    channels = loading.shape[0]
    if channels not in (1, 3):
        raise UsageError(f"the net's input has {channels} channels, pictures have 1 or 3", where=str(source))
    x = np.empty((len(paths), channels, *loading.resize), np.uint8)
    kept, bad = [], []
    for index, made in enumerate(decode_all(paths, loading.resize, channels, loading.workers)):
        if isinstance(made, str):
            bad.append(f"{paths[index]}: {made}")
            if len(bad) > loading.max_bad:
                raise FormatError(
                    f"unreadable picture ({len(bad)} so far): {made}",
                    where=str(paths[index]),
                    hint=f"--max-bad {len(bad)} skips as many",
                )
            continue
        x[len(kept)] = made
        kept.append(index)
    y = np.array([labels[i] for i in kept], np.int64)
    notes = tuple(f"skipped unreadable picture {line}" for line in bad)
    return Data(x[: len(kept)], y, classes, tuple(str(paths[i]) for i in kept), notes=notes)


def _arrays(path: Path, loading: Loading) -> Data:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = set(archive.files)
            x_key = next((key for key in ("x", "x_train") if key in keys), None)
            if x_key is None or x_key.replace("x", "y", 1) not in keys:
                raise FormatError(f"has {', '.join(sorted(keys)) or 'nothing'}, expected x and y", where=str(path))
            x, y = archive[x_key], archive[x_key.replace("x", "y", 1)]
    except (ValueError, OSError, EOFError, KeyError) as error:
        if isinstance(error, BridgeError):
            raise
        raise FormatError(f"is no NumPy archive: {error}", where=str(path)) from None
    return shaped(x, y, loading.shape, str(path))


def _callable(source: str, loading: Loading) -> Data:
    module, _, name = source.partition(":")
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot be imported: {error}", where=source) from None
    made = function()
    if isinstance(made, Data):
        return made
    if not isinstance(made, tuple) or len(made) != 2:
        raise UsageError(f"returned {type(made).__name__}, expected (x, y)", where=source)
    return shaped(np.asarray(made[0]), np.asarray(made[1]), loading.shape, source)


def shaped(x: np.ndarray, y: np.ndarray, shape: tuple[int, int, int], where: str) -> Data:
    """Arrays as :class:`Data`.

    Args:
        x: (N, C, H, W), (N, H, W) for one channel, or (N, H, W, C); with one axis more, a
            sequence of batches.
        y: Labels, of x's leading axes.
        shape: (C, H, W) of the net's input.
        where: The file, for messages.

    Raises:
        FormatError: The shapes do not fit each other or the net.
    """
    lead = y.ndim
    if lead not in (1, 2) or x.shape[:lead] != y.shape or not np.issubdtype(y.dtype, np.integer):
        raise FormatError(f"x is {times(x.shape)} and y is {times(y.shape)} {y.dtype}, expected a label per image", where=where)
    if x.dtype.kind not in "uif" or x.dtype.itemsize > 8:
        raise FormatError(f"x is {x.dtype}, expected numbers", where=where)
    image = x.shape[lead:]
    if len(image) == 2 and shape[0] == 1:
        x = x.reshape(*y.shape, 1, *image)
    elif len(image) == 3 and image[0] != shape[0] and image[2] == shape[0]:
        x = np.moveaxis(x, -1, lead)
    if x.ndim != lead + 3 or x.shape[lead] != shape[0]:
        raise FormatError(f"images are {times(image)}, expected {times(shape)} as the net's input", where=where)
    if x.dtype != np.uint8:
        x = x.astype(np.float32, copy=False)
    return Data(x, y.astype(np.int64), fixed=lead == 2)


def split(data: Data, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and validation, stratified: each class gives its share.

    Args:
        data: The data.
        share: What part is for validation, 0 to below 1.
        seed: For the choice.
    """
    rng = np.random.default_rng([seed, 1])
    held: list[int] = []
    for label in np.unique(data.y):
        members = rng.permutation(np.flatnonzero(data.y == label))
        held += members[: round(len(members) * share)].tolist()
    mask = np.zeros(len(data), bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
