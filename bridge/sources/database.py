"""Data: images from LMDB and LevelDB."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from bridge.errors import FormatError, MissingExtraError, MissingFileError
from bridge.extras import pip
from bridge.layers.data import Data
from bridge.sources import Surroundings
from bridge.sources.datum import Datum, parse_datum
from bridge.sources.items import Item, ItemSource
from bridge.sources.lmdb import LmdbFile

_HINT = pip("data")


class DatabaseSource(ItemSource):
    """The entries of a database in the order of their keys, over and over.

    Source: data_layer.cpp, db_lmdb.cpp, db_leveldb.cpp.
    """

    def open(self, around: Surroundings) -> None:
        """See :meth:`bridge.sources.items.ItemSource.open`."""
        layer = cast(Data, self.layer)
        if not layer.source:
            raise layer.fail("parameter 'source' is missing")
        if layer.type != Data.types[0]:
            raise layer.fail("its entries are annotated with boxes, which no source here reads")
        self._database = database(around.resolve(layer.source), layer.backend)
        self._entries: Iterator[Datum] = iter(())

    def item(self) -> Item:
        """See :meth:`bridge.sources.items.ItemSource.item`."""
        datum = next(self._entries, None)
        if datum is None:
            self._entries = self._database.entries()
            datum = next(self._entries, None)
        if datum is None:
            raise FormatError("is empty", where=str(self._database.path))
        return datum.image(self.transformer.channels), datum.label


class Database:
    """An open database; kept open while somebody has it, since a process may open each once only.

    Args:
        path: Its folder, or its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the order of the keys."""
        raise NotImplementedError

    def entries(self) -> Iterator[Datum]:
        """The values as :class:`~bridge.sources.datum.Datum`."""
        for key, value in self.values():
            yield parse_datum(bytes(value), f"{self.path}: entry {key.decode('utf-8', 'backslashreplace')}")


class _Lmdb(Database):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = LmdbFile(path)

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self._file


class _LevelDB(Database):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import plyvel
        except ImportError:
            raise MissingExtraError("package plyvel is not installed", where=str(path), hint=_HINT) from None
        self._errors = plyvel.Error
        try:  # without the checks LevelDB leaves out what is damaged, and says nothing
            self._database: Any = plyvel.DB(str(path), create_if_missing=False, paranoid_checks=True)
        except plyvel.Error as error:
            raise FormatError(f"is no LevelDB: {_text(error)}", where=str(path)) from None

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from self._database.iterator(verify_checksums=True)
        except self._errors as error:
            raise FormatError(f"is damaged: {_text(error)}", where=str(self.path)) from None


def _text(error: Exception) -> str:
    """What LevelDB says, which plyvel gives as bytes."""
    said = error.args[0] if error.args else ""
    return said.decode("utf-8", "backslashreplace") if isinstance(said, bytes) else str(said)


_BACKENDS: dict[str, type[Database]] = {"LMDB": _Lmdb, "LEVELDB": _LevelDB}
_OPEN: weakref.WeakValueDictionary[tuple[str, Path], Database] = weakref.WeakValueDictionary()


def database(path: Path, backend: str) -> Database:
    """An open database.

    Args:
        path: Its folder, or its file.
        backend: ``LMDB`` or ``LEVELDB``.

    Raises:
        MissingFileError: There is none.
        FormatError: It is not of that kind.
        MissingExtraError: The package that reads it is not installed.
    """
    if not path.exists():
        raise MissingFileError("does not exist", where=str(path))
    key = (backend, path.resolve())
    found = _OPEN.get(key)
    if found is None:
        found = _OPEN[key] = _BACKENDS[backend](path)
    return found
