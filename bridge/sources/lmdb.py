"""LMDB's files, read from the bytes: each page and length is checked before it is followed.

LMDB itself trusts its files: a damaged one ends the process.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bridge.errors import FormatError
from bridge.limits.sources import check_unchanged, open_file, stamp_of

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEAD = 16
"""Bytes of a page's head: its number, a pad, flags, and the bounds of its free space or its count of pages."""
_BRANCH, _LEAF, _OVERFLOW, _META, _FIXED = 1, 2, 4, 8, 0x20
_BIG, _SUBTREE, _SEVERAL = 1, 2, 4
_NO_PAGE = (1 << 64) - 1
_MAX_DEPTH = 32
_META_FIELDS = struct.Struct("<IIQQ")
_DATABASE = struct.Struct("<IHHQQQQQ")
_PAGE, _NODE, _LONG = struct.Struct("<QHHHH"), struct.Struct("<HHHH"), struct.Struct("<Q")


class _Tree(NamedTuple):
    """The main database of a file, as its newest meta page says."""

    page_size: int
    depth: int
    pages: int
    entries: int
    root: int
    transaction: int


class LmdbFile:
    """The file of an LMDB environment, mapped into memory.

    Args:
        path: Its folder, or the file itself.

    Attributes:
        entries: How many entries it says that it has.

    Raises:
        MissingFileError: There is no such file.
        FormatError: It is no LMDB, or damaged.

    Source: LMDB 0.9's mdb.c, ``MDB_page``, ``MDB_node`` and ``MDB_meta``; 64-bit, little-endian.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "data.mdb" if path.is_dir() else path
        with open_file(self.path) as file:
            self.stamp = stamp_of(file)
            if self.stamp.size < 2 * _HEAD + _META_FIELDS.size:
                raise self._error(f"has {self.stamp.size} bytes")
            self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.tree = self._tree()
        self.entries = self.tree.entries

    def _error(self, message: str, at: int | None = None) -> FormatError:
        where = str(self.path) if at is None else f"{self.path}: byte {at}"
        return FormatError(f"is no LMDB: {message}" if at is None else f"is damaged: {message}", where=where)

    def _tree(self) -> _Tree:
        """What the newer of the two meta pages says."""
        first = self._meta(0)
        return max([first, self._meta(first.page_size)], key=lambda meta: meta.transaction)

    def _meta(self, at: int) -> _Tree:
        size = _HEAD + _META_FIELDS.size + 2 * _DATABASE.size + 16
        if at + size > len(self.buffer):
            raise self._error("its second meta page is missing")
        magic, version, _, _ = _META_FIELDS.unpack_from(self.buffer, at + _HEAD)
        if magic != _MAGIC or version != _VERSION or not _PAGE.unpack_from(self.buffer, at)[2] & _META:
            raise self._error("its first bytes are others")
        places = at + _HEAD + _META_FIELDS.size
        page_size = _DATABASE.unpack_from(self.buffer, places)[0]  # the free list's, which keeps the page's size there
        _, _, depth, branch, leaf, overflow, entries, root = _DATABASE.unpack_from(self.buffer, places + _DATABASE.size)
        transaction = struct.unpack_from("<QQ", self.buffer, places + 2 * _DATABASE.size)[1]
        if not 256 <= page_size <= 1 << 16 or page_size & (page_size - 1):
            raise self._error(f"pages of {page_size} bytes")
        pages = branch + leaf + overflow
        if depth > _MAX_DEPTH or pages * page_size > len(self.buffer) or entries * 8 > len(self.buffer):
            raise self._error(f"{entries} entries in {pages} pages of {page_size} bytes, {depth} levels", at)
        return _Tree(page_size, depth, pages, entries, root, transaction)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the order of the keys.

        Raises:
            FormatError: A page is damaged.
            ChangedError: The file was written to since it was opened.
        """
        check_unchanged(self.path, self.stamp)
        found = 0
        if self.tree.root != _NO_PAGE:
            for key, value in self._walk():
                found += 1
                yield key, value
        if found != self.entries:
            raise self._error(f"{found} entries, expected {self.entries}", 0)

    def _walk(self) -> Iterator[tuple[bytes, bytes]]:
        """The entries of all leaves, from the first to the last."""
        waiting = [(self.tree.root, 1)]
        left = self.tree.pages
        while waiting:
            number, depth = waiting.pop()
            at, flags, nodes = self._page(number)
            left -= 1
            if left < 0 or depth > self.tree.depth:
                raise self._error("more pages than the file says", at)
            if flags & _LEAF:
                for node in nodes:
                    yield self._entry(at, node)
            else:
                waiting += [(self._child(node), depth + 1) for node in reversed(nodes)]

    def _page(self, number: int) -> tuple[int, int, list[int]]:
        """Byte, flags and the bytes of the nodes of a branch or leaf page."""
        size = self.tree.page_size
        at = number * size
        if at + size > len(self.buffer):
            raise self._error(f"page {number} is not in the file", 0)
        own, _, flags, lower, _ = _PAGE.unpack_from(self.buffer, at)
        if own != number or flags & (_BRANCH | _LEAF) not in (_BRANCH, _LEAF) or flags & (_OVERFLOW | _META | _FIXED):
            raise self._error(f"page {number} is page {own} with flags {flags:#x}", at)
        if not _HEAD <= lower <= size:
            raise self._error(f"page {number} has its nodes up to {lower} of {size}", at)
        places = struct.unpack_from(f"<{(lower - _HEAD) // 2}H", self.buffer, at + _HEAD)
        if any(place < lower or place + _NODE.size > size for place in places):
            raise self._error(f"page {number} has a node outside", at)
        return at, flags, [at + place for place in places]

    def _child(self, node: int) -> int:
        low, high, flags, _ = _NODE.unpack_from(self.buffer, node)
        return int(low | high << 16 | flags << 32)

    def _entry(self, page: int, node: int) -> tuple[bytes, bytes]:
        """Key and value of a node in a leaf."""
        low, high, flags, key_size = _NODE.unpack_from(self.buffer, node)
        size, end = low | high << 16, page + self.tree.page_size
        key, data = node + _NODE.size, node + _NODE.size + key_size
        stored = _LONG.size if flags & _BIG else size
        if data + stored > end or flags & (_SUBTREE | _SEVERAL):
            raise self._error("an entry runs over its page" if data + stored > end else "several databases", node)
        name = bytes(self.buffer[key:data])
        if flags & _BIG:
            data = self._overflow(_LONG.unpack_from(self.buffer, data)[0], size)
        return name, bytes(self.buffer[data : data + size])

    def _overflow(self, number: int, size: int) -> int:
        """The byte of a value that has pages of its own."""
        at = number * self.tree.page_size
        if at + _HEAD + size > len(self.buffer):
            raise self._error(f"a value of {size} bytes in page {number} runs past the end of file", 0)
        own, _, flags, low, high = _PAGE.unpack_from(self.buffer, at)
        if own != number or flags != _OVERFLOW or (low | high << 16) * self.tree.page_size < _HEAD + size:
            raise self._error(
                f"page {number} is page {own} with flags {flags:#x}, expected a value of {size} bytes", at
            )
        return at + _HEAD
