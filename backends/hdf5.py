"""Reader of Caffe's HDF5 weights, ``.caffemodel.h5``.

The file has a group ``/data/LAYER`` for every layer, with its blobs as data sets ``0``,
``1``, ...; a parameter that several layers share is stored at its owner alone. Types and
wiring of the layers are not in the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from backends.mapped import mapped_blob
from backends.wire import FileBytes
from bridge.errors import BridgeError, FormatError, MissingExtraError
from bridge.extras import pip
from bridge.limits.budget import BUDGET, shape_problem
from bridge.schema import Blob, RawLayer, RawNet, count
from bridge.schema.message import Message

MAX_FOLDER_DEPTH = 16
"""Groups nested deeper than this are refused; a level is a slash in a layer's name."""
_FILTERS = frozenset({1, 2, 3})  # deflate, shuffle, fletcher32: what every HDF5 has built in
_DEFLATE = 1032
"""No deflated data expands more than so many times."""
_FEW_CHUNKS = 1000
MAX_GAP = 64
"""So many parameters that stand at other layers may be missing before a layer's data set."""
_FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
"""What h5py raises for damaged files."""


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
    try:
        import h5py
    except ImportError:
        hint = pip("hdf5")
        raise MissingExtraError("h5py is not installed", where=str(path), hint=hint) from None
    source = FileBytes.open(path)
    walk = _Walk(h5py, source)
    with _faults(source.name), contextlib.ExitStack() as stack:
        file = stack.enter_context(h5py.File(path, "r", locking=False))
        walk.file(file)
        walk.check_total()
        if walk.open:
            stack.pop_all()  # open for as long as there are blobs that read from it
    layers = tuple(_layer(name, blobs, source.name, prototxt is not None) for name, blobs in walk.layers.items())
    return RawNet("", layers, source=source.name, reader="hdf5", complete=False)


@contextlib.contextmanager
def _faults(where: str) -> Iterator[None]:
    try:
        yield
    except BridgeError:
        raise
    except _FAULTS as error:
        hint = "the file is damaged; fetch it again and compare its checksum"
        raise FormatError(f"HDF5 says: {' '.join(str(error).split())}", where=where, hint=hint) from None


class _Walk:
    """Collects ``layers``: name of each layer -> index -> blob; ``open`` if some are not views."""

    def __init__(self, h5py: Any, source: FileBytes) -> None:
        self.h5py, self.source = h5py, source
        self.seen: set[Any] = set()
        self.layers: dict[str, dict[int, Blob]] = {}
        self.open = False
        self.packed = self.unpacked = 0

    def file(self, file: Any) -> None:
        """The whole file."""
        names = set(file)
        if names & {"history", "learned_net"}:
            hint = "give the .caffemodel.h5 that was saved with it"
            problem = "a solverstate, which holds the solver's history, not a net"
            raise FormatError(problem, where=self.source.name, hint=hint)
        data = self.member("", file, "data") if "data" in names else None
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
            item = self.member(name, group, key)
            inner = f"{name}/{_text(key)}".removeprefix("/")
            if not hasattr(item, "shape"):
                self.group(inner, item, depth + 1)
            elif depth and key.isascii() and key.isdigit():
                if len(key) > 9 or int(key) >= len(group) + MAX_GAP:
                    raise self.error(inner, f"a data set {_text(key)} in a layer that has {len(group)}")
                self.layers.setdefault(name, {})[int(key)] = self.blob(inner, item)
            else:
                raise self.error(inner, "is a data set", expected="a layer's group, or a number in it")

    def member(self, name: str, group: Any, key: str | bytes) -> Any:
        """What a name in a group stands for, if that lies in this file and is named once."""
        links = self.h5py.h5l
        kind = group.id.links.get_info(key if isinstance(key, bytes) else key.encode()).type
        if kind != links.TYPE_HARD:
            what = {links.TYPE_SOFT: "SoftLink", links.TYPE_EXTERNAL: "ExternalLink"}.get(kind, "link of another kind")
            raise self.error(f"{name}/{_text(key)}", f"a {what}, which is not followed")
        item = group[key]
        address = self.h5py.h5o.get_info(item.id).addr
        if address in self.seen:
            raise self.error(f"{name}/{_text(key)}", "is linked to twice")
        self.seen.add(address)
        return item

    def blob(self, name: str, data: Any) -> Blob:
        """A data set; a view into the file where its values lie there plainly."""
        h5d, plist = self.h5py.h5d, data.id.get_create_plist()
        if plist.get_layout() == h5d.VIRTUAL or plist.get_external_count():
            raise self.error(name, "its values lie in other files, which are not followed")
        if data.dtype.kind != "f" or data.dtype.itemsize > 8 or data.shape is None:
            raise self.error(name, f"has type {data.dtype}", expected="float16, float32 or float64")
        offset = data.id.get_offset()
        plain = self.h5py.h5t.py_create(data.dtype) == data.id.get_type()
        if plist.get_layout() == h5d.CONTIGUOUS and offset is not None and plain:
            return mapped_blob(self.source, offset, data.shape, data.dtype, f"/data/{name}")
        self.check_size(name, data, plist)
        self.open = True
        load = partial(_load, data, self.source, f"{self.source.name}: /data/{name}")
        return Blob(data.shape, data.dtype.newbyteorder("="), load)

    def check_size(self, name: str, data: Any, plist: Any) -> None:
        """No memory is set aside for more values than the file can hold, nor for a larger chunk of them."""
        filters = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
        if filters - _FILTERS:
            raise self.error(name, "is packed by a filter that is not built into HDF5")
        factor = _DEFLATE if filters else 1
        nbytes, stored = count(data.shape) * data.dtype.itemsize, data.id.get_storage_size()
        if nbytes > stored * factor or stored > self.source.size:
            raise self.error(name, f"{nbytes} bytes, of which the file has {min(stored, self.source.size)}")
        if problem := shape_problem(data.shape):
            raise self.error(name, problem)
        if plist.get_layout() == self.h5py.h5d.CHUNKED:
            self.check_chunks(name, data, count(plist.get_chunk()) * data.dtype.itemsize, factor)
        self.packed += stored
        self.unpacked += nbytes

    def check_chunks(self, name: str, data: Any, nbytes: int, factor: int) -> None:
        """A chunk's size is a number in the file too: HDF5 sets it aside before it looks at what is stored."""
        left = self.source.size

        def look(chunk: Any) -> None:
            nonlocal left
            left -= chunk.size
            outside = chunk.byte_offset is None or chunk.byte_offset + chunk.size > self.source.size
            if left < 0 or outside or nbytes > chunk.size * factor:
                raise self.error(name, f"a chunk is {nbytes} bytes, of which the file has {chunk.size}")

        chunks = data.id.get_num_chunks()
        if chunks > self.source.size // 8:
            raise self.error(name, f"{chunks} chunks, more than the file has room for")
        if hasattr(data.id, "chunk_iter"):
            data.id.chunk_iter(look)
        else:  # an HDF5 before 1.14 looks each one up from the first on
            for index in range(min(chunks, _FEW_CHUNKS)):
                look(data.id.get_chunk_info(index))

    def check_total(self) -> None:
        """What all data sets together come to."""
        if self.packed > self.source.size:
            raise self.error("", f"its data sets take {self.packed} bytes, of which the file has {self.source.size}")
        BUDGET.expand(self.source.size, self.unpacked, self.source.name)

    def error(self, name: str, message: str, expected: str = "") -> FormatError:
        where = f"{self.source.name}: /data/{name.removeprefix('/')}"
        return FormatError(message, where=where, expected=expected)


def _text(key: str | bytes) -> str:
    """A name; h5py gives one that is not UTF-8 as bytes."""
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key


def _load(data: Any, source: FileBytes, where: str) -> np.ndarray:
    source.check()
    dtype = data.dtype.newbyteorder("=")
    with _faults(where):
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
