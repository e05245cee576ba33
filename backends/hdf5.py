"""Reader of Caffe's HDF5 weights, ``.caffemodel.h5``.

The file has a group ``/data/LAYER`` for every layer, with its blobs as data sets ``0``,
``1``, ...; a parameter that several layers share is stored at its owner alone. Types and
wiring of the layers are not in the file.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from backends.mapped import mapped_blob
from backends.wire import FileBytes
from bridge.errors import FormatError
from bridge.limits.budget import BUDGET
from bridge.limits.hdf5 import Guard, faults, import_h5py, text
from bridge.schema import Blob, RawLayer, RawNet, count
from bridge.schema.message import Message

MAX_FOLDER_DEPTH = 16
"""Groups nested deeper than this are refused; a level is a slash in a layer's name."""
MAX_GAP = 64
"""So many parameters that stand at other layers may be missing before a layer's data set."""


def read(path: str | Path, *, prototxt: str | Path | None = None) -> RawNet:
    """Read ``.caffemodel.h5``.

    Args:
        path: The file.
        prototxt: Not read; where one is given, a parameter that a layer shares with an
            earlier one is left for the prototxt to fill in, else the layer is uncovered.

    Returns:
        Names and blobs of the layers, in the order of their names; blobs are float32,
        float64 or float16 as stored.

    Raises:
        MissingExtraError: h5py is not installed.
        MissingFileError: The file cannot be opened.
        FormatError: It is not Caffe's HDF5 weights, is damaged, or refers to other files.

    Source: Caffe's ``Net::ToHDF5`` and ``Net::CopyTrainedLayersFromHDF5``.
    """
    import_h5py(str(path))
    source = FileBytes.open(path)
    walk = _Walk(source)
    with faults(source.name), contextlib.ExitStack() as stack:
        file = stack.enter_context(walk.guard.h5py.File(path, "r", locking=False))
        walk.file(file)
        walk.guard.check_total()
        if walk.open:
            stack.pop_all()  # open for as long as there are blobs that read from it
    layers = tuple(_layer(name, blobs, source.name, prototxt is not None) for name, blobs in walk.layers.items())
    return RawNet("", layers, source=source.name, reader="hdf5", complete=False)


class _Walk:
    """Collects ``layers``: name of each layer -> index -> blob; ``open`` if some are not views."""

    def __init__(self, source: FileBytes) -> None:
        self.source = source
        self.guard = Guard(source.name, source.size)
        self.layers: dict[str, dict[int, Blob]] = {}
        self.open = False

    def file(self, file: Any) -> None:
        """The whole file."""
        names = set(file)
        if names & {"history", "learned_net"}:
            hint = "give the .caffemodel.h5 that was saved with it"
            problem = "a solverstate, which holds the solver's history, not a net"
            raise FormatError(problem, where=self.source.name, hint=hint)
        data = self.guard.member("", file, "data") if "data" in names else None
        if not hasattr(data, "items"):
            raise FormatError("has no group /data, so it does not hold Caffe's weights", where=self.source.name)
        self.group("", data, 0)

    def group(self, name: str, group: Any, depth: int) -> None:
        """A layer, or a part of the names of layers that have slashes."""
        if depth > MAX_FOLDER_DEPTH:
            raise self.error(name, f"groups nested deeper than {MAX_FOLDER_DEPTH}")
        if depth and not len(group):
            self.layers.setdefault(name, {})
        for key in group:
            item = self.guard.member(f"data/{name}".rstrip("/"), group, key)
            inner = f"{name}/{text(key)}".removeprefix("/")
            if not hasattr(item, "shape"):
                self.group(inner, item, depth + 1)
            elif depth and key.isascii() and key.isdigit():
                if len(key) > 9 or int(key) >= len(group) + MAX_GAP:
                    raise self.error(inner, f"a data set {text(key)} in a layer that has {len(group)}")
                self.layers.setdefault(name, {})[int(key)] = self.blob(inner, item)
            else:
                raise self.error(inner, "is a data set", expected="a layer's group, or a number in it")

    def blob(self, name: str, data: Any) -> Blob:
        """A data set; a view into the file where its values lie there plainly."""
        self.guard.check_inside(f"data/{name}", data)
        if data.dtype.kind != "f" or data.dtype.itemsize > 8 or data.shape is None:
            raise self.error(name, f"has type {data.dtype}", expected="float16, float32 or float64")
        offset = data.id.get_offset()
        plain = self.guard.h5py.h5t.py_create(data.dtype) == data.id.get_type()
        if self.guard.contiguous(data) and offset is not None and plain:
            return mapped_blob(self.source, offset, data.shape, data.dtype, f"/data/{name}")
        self.guard.check(f"data/{name}", data)
        self.open = True
        load = partial(_load, data, self.source, f"{self.source.name}: /data/{name}")
        return Blob(data.shape, data.dtype.newbyteorder("="), load)

    def error(self, name: str, message: str, expected: str = "") -> FormatError:
        return self.guard.error(f"data/{name.removeprefix('/')}", message, expected)


def _load(data: Any, source: FileBytes, where: str) -> np.ndarray:
    source.check()
    dtype = data.dtype.newbyteorder("=")
    with faults(where):
        nbytes = count(data.shape) * dtype.itemsize
        values: np.ndarray = BUDGET.load(nbytes, where, lambda: np.asarray(data[()], dtype))
    source.check()
    return values


def _layer(name: str, blobs: dict[int, Blob], path: str, has_prototxt: bool) -> RawLayer:
    definition = Message(path, name=name)
    held = [blobs.get(index) for index in range(max(blobs, default=-1) + 1)]
    if None in held and not has_prototxt:
        problem = f"blob {held.index(None)} is shared with another layer; the prototxt tells which"
        return RawLayer(name, "", definition, (), problem)
    # The gaps are what assemble fills with the parameter of that name.
    return RawLayer(name, "", definition, cast("tuple[Blob, ...]", tuple(held)))
