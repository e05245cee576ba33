"""HDF5 files: what their links, sizes and chunks ask for is checked before it is followed or set aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import BridgeError, FormatError, MissingExtraError
from bridge.extras import pip
from bridge.limits.budget import BUDGET, shape_problem
from bridge.limits.sources import open_file

_FILTERS = frozenset({1, 2, 3, 32000})  # deflate, shuffle, fletcher32 of HDF5's own, and h5py's LZF
_DEFLATE = 1032
"""No deflated data expands more than so many times, and LZF less."""
_FEW_CHUNKS = 1000
_FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError)
"""What h5py raises for damaged files."""


def import_h5py(where: str) -> Any:
    """The module h5py.

    Args:
        where: The file that needs it, for the message.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py is not installed", where=where, hint=pip("hdf5")) from None
    return h5py


@contextlib.contextmanager
def faults(where: str) -> Iterator[None]:
    """What h5py raises within the block as a FormatError."""
    try:
        yield
    except BridgeError:
        raise
    except _FAULTS as error:
        hint = "the file is damaged; fetch it again and compare its checksum"
        raise FormatError(f"HDF5 says: {' '.join(str(error).split())}", where=where, hint=hint) from None


class Guard:
    """Checks the parts of one HDF5 file.

    Args:
        where: The file, for messages.
        nbytes: Its size.

    Attributes:
        h5py: The module.
        packed, unpacked: The bytes of all data sets that were checked, in the file and in memory.
    """

    def __init__(self, where: str, nbytes: int) -> None:
        self.h5py = import_h5py(where)
        self.where, self.nbytes = where, nbytes
        self.seen: set[Any] = set()
        self.packed = self.unpacked = 0

    def error(self, name: str, message: str, expected: str = "") -> FormatError:
        """What is wrong with a part.

        Args:
            name: Its path in the file.
            message: What is found.
            expected: What is expected.
        """
        return FormatError(message, where=f"{self.where}: /{name.removeprefix('/')}", expected=expected)

    def member(self, name: str, group: Any, key: str | bytes) -> Any:
        """What a name in a group stands for, if that lies in this file and is named once.

        Raises:
            FormatError: It is a link to elsewhere, or to what another name stands for.
        """
        links = self.h5py.h5l
        kind = group.id.links.get_info(key if isinstance(key, bytes) else key.encode()).type
        path = f"{name}/{text(key)}"
        if kind != links.TYPE_HARD:
            what = {links.TYPE_SOFT: "SoftLink", links.TYPE_EXTERNAL: "ExternalLink"}.get(kind, "link of another kind")
            raise self.error(path, f"a {what}, which is not followed")
        item = group[key]
        address = self.h5py.h5o.get_info(item.id).addr
        if address in self.seen:
            raise self.error(path, "is linked to twice")
        self.seen.add(address)
        return item

    def check(self, name: str, data: Any) -> None:
        """Demand that no memory is set aside for more values than the file can hold, nor for a larger chunk.

        Args:
            name: The data set's path in the file.
            data: The data set.

        Raises:
            FormatError: It asks for more, or its values lie in other files.
        """
        self.check_inside(name, data)
        plist = data.id.get_create_plist()
        filters = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
        if filters - _FILTERS:
            raise self.error(name, "is packed by a filter that h5py does not bring")
        factor = _DEFLATE if filters else 1
        nbytes, stored = _nbytes(data), data.id.get_storage_size()
        if nbytes > stored * factor or stored > self.nbytes:
            raise self.error(name, f"{nbytes} bytes, of which the file has {min(stored, self.nbytes)}")
        if problem := shape_problem(data.shape or ()):
            raise self.error(name, problem)
        if plist.get_layout() == self.h5py.h5d.CHUNKED:
            chunk = data.dtype.itemsize
            for extent in plist.get_chunk():
                chunk *= int(extent)
            self._check_chunks(name, data, chunk, factor)
        self.packed += stored
        self.unpacked += nbytes

    def check_inside(self, name: str, data: Any) -> None:
        """Demand that a data set's values lie in this file.

        Raises:
            FormatError: They lie in others.
        """
        plist = data.id.get_create_plist()
        if plist.get_layout() == self.h5py.h5d.VIRTUAL or plist.get_external_count():
            raise self.error(name, "its values lie in other files, which are not followed")

    def contiguous(self, data: Any) -> bool:
        """Whether a data set's values lie unbroken in the file."""
        return bool(data.id.get_create_plist().get_layout() == self.h5py.h5d.CONTIGUOUS)

    def _check_chunks(self, name: str, data: Any, nbytes: int, factor: int) -> None:
        """A chunk's size is a number in the file too: HDF5 sets it aside before it looks at what is stored."""
        left = self.nbytes

        def look(chunk: Any) -> None:
            nonlocal left
            left -= chunk.size
            outside = chunk.byte_offset is None or chunk.byte_offset + chunk.size > self.nbytes
            if left < 0 or outside or nbytes > chunk.size * factor:
                raise self.error(name, f"a chunk is {nbytes} bytes, of which the file has {chunk.size}")

        chunks = data.id.get_num_chunks()
        if chunks > self.nbytes // 8:
            raise self.error(name, f"{chunks} chunks, more than the file has room for")
        if hasattr(data.id, "chunk_iter"):
            data.id.chunk_iter(look)
        else:  # an HDF5 before 1.14 looks each one up from the first on
            for index in range(min(chunks, _FEW_CHUNKS)):
                look(data.id.get_chunk_info(index))

    def check_total(self) -> None:
        """Demand that all data sets together fit the file, and expand no more than weights do.

        Raises:
            FormatError: They do not.
        """
        if self.packed > self.nbytes:
            message = f"its data sets take {self.packed} bytes, of which the file has {self.nbytes}"
            raise FormatError(message, where=self.where)
        BUDGET.expand(self.nbytes, self.unpacked, self.where)

    def numbers(self, name: str, group: Any, key: str) -> np.ndarray:
        """The values of a data set of numbers.

        Args:
            name: The group's path in the file.
            group: The group.
            key: The data set's name.

        Returns:
            The values, of the data set's type in the machine's byte order; their memory counts in the budget.

        Raises:
            FormatError: It is no data set of numbers, or asks for more than the file holds.
            BudgetError: It is too large.
        """
        path = f"{name}/{key}"
        data = self.member(name, group, key)
        if getattr(data, "shape", None) is None or data.dtype.kind not in "fiub":
            found = getattr(data, "dtype", "a group")
            raise self.error(path, f"is {found}", expected="a data set of numbers")
        self.check(path, data)
        self.check_total()
        dtype = data.dtype.newbyteorder("=")
        return np.asarray(BUDGET.load(_nbytes(data), f"{self.where}: {path}", lambda: np.asarray(data[()], dtype)))


def _nbytes(data: Any) -> int:
    """The bytes of a data set's values, in whole numbers of any size."""
    nbytes = int(data.dtype.itemsize)
    for extent in data.shape or ():
        nbytes *= int(extent)
    return nbytes


@contextlib.contextmanager
def open_hdf5(path: str | Path) -> Iterator[tuple[Any, Guard]]:
    """An HDF5 file, open for reading within the block, and what checks its parts.

    Raises:
        MissingExtraError: h5py is not installed.
        MissingFileError: It cannot be opened.
        FormatError: It is no HDF5 file, or the block meets damage.
    """
    where = str(path)
    with open_file(path) as stream:
        nbytes = stream.seek(0, 2)
    guard = Guard(where, nbytes)
    with faults(where), guard.h5py.File(path, "r", locking=False) as file:
        yield file, guard


def text(key: str | bytes) -> str:
    """A name; h5py gives one that is not UTF-8 as bytes."""
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key
