"""Images and labels: where they come from, and how a part is held out for validation."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import BridgeError, FormatError, MissingFileError, UsageError, nearest
from bridge.finetuning.cache import digest
from bridge.finetuning.listener import Work, silent
from bridge.schema import Shape, times

_NAMES = "--class-names"


@dataclass(frozen=True)
class Data:
    """Images and labels.

    Attributes:
        x: (N, C, H, W) uint8 or float32; for ``fixed`` batches (batches, N, C, H, W).
        y: Labels, int64 or float32 (N), or (batches, N); several labels or targets per image are float32 with one
            more axis, (N, labels).
        classes: The names of the classes, or of several labels; empty where the data have none.
        names: The file of each image; empty where images have no files.
        fixed: Whether the first axis is a sequence of batches that are taken in order.
        notes: Remarks for the user, such as images that were skipped.
        content: Digest of ``x``.
        order: Rows of ``x`` that belong to these data; ``None`` is all of them.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    fixed: bool = False
    notes: tuple[str, ...] = ()
    content: str = ""
    order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Some of the images, as stored."""
        return np.asarray(self.x[indices if self.order is None else self.order[indices]])

    def take(self, indices: np.ndarray, notes: tuple[str, ...] = ()) -> Data:
        """The data of some of the images; the images are not copied."""
        names = tuple(self.names[i] for i in indices) if self.names else ()
        order = indices if self.order is None else self.order[indices]
        return Data(self.x, self.y[indices], self.classes, names, self.fixed, notes, self.content, order)

    def digest(self) -> str:
        """SHA-256 of images and labels."""
        return digest(self.content or digest(self.x), self.y, "all" if self.order is None else self.order)


@dataclass(frozen=True)
class Loading:
    """How pictures and files become arrays.

    Attributes:
        shape: (C, H, W) of the net's input.
        resize: (height, width) that pictures are brought to.
        workers: Processes that decode pictures.
        max_bad: Number of unreadable pictures that are skipped; one more is an error.
        memory: Bytes of decoded pictures that are kept in memory; more go to a file.
        folder: Folder of that file.
        root: Folder that the paths of a list start from; empty is the list's own.
        work: Is told how many pictures are decoded.
    """

    shape: tuple[int, int, int]
    resize: tuple[int, int]
    workers: int = 2
    max_bad: int = 0
    memory: int = 1 << 30
    folder: Path = field(default_factory=Path)
    root: str = ""
    work: Work = silent


def load_data(source: str, loading: Loading, classes: Sequence[str] = ()) -> Data:
    """Data from a folder per class, an .npz, a .csv, a list of ``path label`` lines, or ``module:function``.

    Args:
        source: The path, or the callable's name; the callable returns (x, y) or a :class:`Data`.
        loading: How files become arrays.
        classes: The names of the classes where they are known already, so that validation data
            number them in the same way.

    Raises:
        MissingFileError: It does not exist.
        FormatError: It cannot be read, or too many pictures cannot.
        UsageError: It is none of these kinds.
    """
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix != ".npz"):
        from bridge.finetuning.pictures_data import from_folder, from_list, from_table

        if path.suffix.lower() == ".csv":
            return from_table(path, loading, classes)
        return from_folder(path, loading, classes) if path.is_dir() else from_list(path, loading)
    if path.is_file():
        return _arrays(path, loading.shape)
    if ":" in source:
        return _callable(source, loading.shape)
    raise MissingFileError(
        "does not exist", where=source, hint="a folder per class, .npz, .csv, list file or module:function"
    )


def _arrays(path: Path, shape: tuple[int, int, int]) -> Data:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = set(archive.files)
            x_key = next((key for key in ("x", "x_train") if key in keys), None)
            if x_key is None or x_key.replace("x", "y", 1) not in keys:
                raise FormatError(f"has {', '.join(sorted(keys)) or 'nothing'}", expected="x and y", where=str(path))
            x, y = archive[x_key], archive[x_key.replace("x", "y", 1)]
            classes = tuple(map(str, archive["classes"])) if "classes" in keys else ()
    except BridgeError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"is no NumPy archive: {error}", where=str(path)) from None
    return shaped(x, y, shape, str(path), classes)


def _callable(source: str, shape: tuple[int, int, int]) -> Data:
    function = _imported(source)
    with _user_code(source, "failed"):
        made = function()
    if isinstance(made, Data):
        return made
    if not isinstance(made, tuple) or len(made) != 2:
        raise UsageError(f"returned {type(made).__name__}", expected="(x, y)", where=source)
    with _user_code(source, "returned no arrays"):
        x, y = map(np.asarray, made)
    return shaped(x, y, shape, source)


def _imported(source: str) -> Callable[[], Any]:
    """Import the function; as by ``python -m``, its module may be in the current folder."""
    module, _, name = source.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _user_code(source, "is no file, and cannot be imported", "PYTHONPATH says where else modules are"):
        found = importlib.import_module(module)
    function = getattr(found, name, None)
    if not callable(function):
        what = "does not exist" if function is None else f"is {type(function).__name__}"
        hint = nearest(name, vars(found)) if function is None else ""
        raise UsageError(f"{what}", expected="a function", where=source, hint=hint)
    made: Callable[[], Any] = function
    return made


@contextlib.contextmanager
def _user_code(source: str, what: str, hint: str = "") -> Iterator[None]:
    """Turn an exception of the user's own code into one line that says where it was raised."""
    try:
        yield
    except BridgeError:
        raise
    except (Exception, SystemExit) as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        own = last.filename != __file__ and "importlib" not in last.filename
        place = f" ({last.filename}:{last.lineno})" if own else ""
        text = " ".join(str(error).split())
        raise UsageError(f"{what}: {type(error).__name__}: {text}{place}", where=source, hint=hint) from None


def shaped(x: np.ndarray, y: np.ndarray, shape: tuple[int, int, int], where: str, classes: Sequence[str] = ()) -> Data:
    """Arrays as :class:`Data`.

    Args:
        x: (N, C, H, W), (N, H, W) for one channel, or (N, H, W, C); (batches, N, C, H, W) or
            (batches, N, H, W, C) is a sequence of batches.
        y: Labels, (N), (N, 1) or with batches (batches, N); (N, labels) are several for each image.
        shape: (C, H, W) of the net's input.
        where: The file, for messages.
        classes: The classes' names.

    Raises:
        FormatError: The shapes do not fit each other or the net, or values are not finite numbers.
    """
    lead = 2 if x.ndim == 5 else 1
    if y.shape == (*x.shape[:lead], 1):
        y = y[..., 0]
    if x.shape[:lead] != y.shape[:lead] or y.ndim > lead + 1 or y.dtype.kind not in "biuf":
        raise FormatError(
            f"x is {times(x.shape)} and y is {times(y.shape)} {y.dtype}", expected="labels for each image", where=where
        )
    if x.dtype.kind not in "uif" or x.dtype.itemsize > 8:
        raise FormatError(f"x is {x.dtype}", expected="numbers", where=where)
    x = _channels_first(x, lead, shape)
    if x.ndim != lead + 3 or x.shape[lead] != shape[0]:
        raise FormatError(
            f"images are {times(x.shape[lead:])}", expected=f"{times(shape)} as the net's input", where=where
        )
    if x.dtype != np.uint8:
        x = x.astype(np.float32, copy=False)
    _check_finite(x, y, where)
    return Data(x, labels_of(y, lead), tuple(classes), fixed=lead == 2, content=digest(x))


def _channels_first(x: np.ndarray, lead: int, shape: Shape) -> np.ndarray:
    image = x.shape[lead:]
    if len(image) == 2 and shape[0] == 1:
        return x.reshape(*x.shape[:lead], 1, *image)
    if len(image) == 3 and image[0] != shape[0] and image[2] == shape[0]:
        return np.moveaxis(x, -1, lead)
    return x


def _check_finite(x: np.ndarray, y: np.ndarray, where: str) -> None:
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind == "f" and array.size and not np.isfinite([array.min(), array.max()]).all():
            place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            raise FormatError(f"{name} has {array[place]} at {list(place)}", expected="finite numbers", where=where)


def labels_of(y: np.ndarray, lead: int = 1) -> np.ndarray:
    """Labels that are whole numbers as int64, others, and several for an image, as float32.

    Args:
        y: Labels, (N) or with ``lead`` of 2 (batches, N), and perhaps one more axis.
        lead: Axes that count images.
    """
    whole = y.ndim == lead and (y.dtype.kind in "bui" or bool(np.all(y == np.floor(y))))
    return y.astype(np.int64 if whole else np.float32)


def named(data: Data, names: Sequence[str]) -> Data:
    """The data with the names of the classes that the user gives.

    Raises:
        UsageError: There is not one name for each class.
    """
    if len(set(names)) < len(names):
        raise UsageError("two classes have the same name", where=_NAMES)
    if data.classes and len(names) != len(data.classes):
        raise UsageError(
            f"expected {len(data.classes)} names, the data's classes are {_some(data.classes)}; "
            f"found {len(names)}: {_some(names)}",
            where=_NAMES,
            hint="a name for each, in that order, or leave it out",
        )
    if set(names) == set(data.classes) and tuple(names) != data.classes:
        raise UsageError(
            f"expected the data's classes, {_some(data.classes)}; found them in another order: {_some(names)}",
            where=_NAMES,
            hint="leave it out",
        )
    if data.y.dtype.kind == "i" and data.y.max(initial=0) >= len(names):
        raise UsageError(
            f"expected a name for each label, 0 to {data.y.max()}; found {len(names)}: {_some(names)}", where=_NAMES
        )
    return dataclasses.replace(data, classes=tuple(names))


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


def split(data: Data, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation; the same share of each class is held out.

    Args:
        data: The data.
        share: The part that is held out, 0 to below 1.
        seed: Seed of the choice.
    """
    rng = np.random.default_rng([seed, 1])
    held: list[int] = []
    classes = np.unique(data.y) if data.y.dtype.kind == "i" else [None]
    for label in classes:
        members = np.arange(len(data)) if label is None else np.flatnonzero(data.y == label)
        held += rng.permutation(members)[: round(len(members) * share)].tolist()
    mask = np.zeros(len(data), bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
