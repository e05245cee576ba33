"""What a file is, recognized by its first bytes.

A model is often not what its name says: a web page saved as ``.caffemodel``, a Git LFS
pointer, a solverstate. Knowing which gives a better message than a failed parse, and
chooses the reader by content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bridge.caffe_files.varint import read_varint
from bridge.limits.sources import open_file

HEAD = 4096
"""Bytes of a file that are enough to recognize it."""


class Kind(NamedTuple):
    """What a file is.

    Attributes:
        name: One word, the same for all files of the sort.
        problem: Why it holds no net, such as ``a Git LFS pointer, not a model``; empty if it may.
        hint: What to do about it.
    """

    name: str
    problem: str = ""
    hint: str = ""


_UNPACK = "unpack it and give the file inside"
_AGAIN = "download it again with the link to the raw file"
_NO_WEIGHTS = "it holds no net; give the .caffemodel that was saved with it"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("caffemodel"),
        Kind("hdf5"),
        Kind("npz"),
        Kind("onnx"),
        Kind("prototxt"),
        Kind("safetensors"),
        Kind("binaryproto", "a mean image (BlobProto), not a net", "give it where a mean is asked for"),
        Kind("bzip2", "bzip2 data, not a model", _UNPACK),
        Kind("empty", "the file is empty", "the download or copy may have failed; fetch it again"),
        Kind("gzip", "gzip data, not a model", _UNPACK),
        Kind("html", "a web page, not a model", _AGAIN),
        Kind("json", "JSON text, not a model", "give a prototxt or weights"),
        Kind("lfs", "a Git LFS pointer, not the model itself", "fetch the model with 'git lfs pull'"),
        Kind("npy", "a single NumPy array, not a net", "give a .npz that 'bridge convert' wrote"),
        Kind("pickle", "a Python pickle, which is not read because it can run code", "give the .caffemodel"),
        Kind("solverstate", "a solverstate, which holds the solver's history, not a net", _NO_WEIGHTS),
        Kind("tar", "a tar archive, not a model", _UNPACK),
        Kind("torch", "a PyTorch file, not a Caffe model", "give the .caffemodel"),
        Kind("unknown", "not a kind of file that is known here", "give a .caffemodel, .caffemodel.h5 or prototxt"),
        Kind("utf16", "text in UTF-16, expected UTF-8", "save it as UTF-8"),
        Kind("xz", "xz data, not a model", _UNPACK),
        Kind("zip", "a ZIP archive, not a model", _UNPACK),
        Kind("zstd", "Zstandard data, not a model", _UNPACK),
    )
}
"""Every kind that :func:`identify` names."""

_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x93NUMPY", "npy"),
    (b"version https://git-lfs", "lfs"),
    (b"PK\x05\x06", "zip"),
    (b"\xff\xfe", "utf16"),
    (b"\xfe\xff", "utf16"),
)
_HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml|body)", re.IGNORECASE)
_PROTOTXT = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|#[^\n]*(?:\n|$))*(?:[A-Za-z_]\w*\s*(?:[:{<]|(?P<cut>$))|$)")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")

# Field number -> wire types that it may have, at the top level of each message.
_NET = {1: "2", 2: "2", 3: "2", 4: "02", 5: "0", 6: "2", 7: "0", 8: "2", 100: "2"}
_BLOB = {1: "0", 2: "0", 3: "0", 4: "0", 5: "25", 6: "25", 7: "2", 8: "12", 9: "12", 10: "0", 11: "0", 12: "2", 13: "2"}
_SOLVER = {1: "0", 2: "2", 3: "2", 4: "0"}
_ONNX = {1: "0", 2: "2", 3: "2", 4: "2", 5: "0", 6: "2", 7: "2", 8: "2", 14: "2", 20: "2", 25: "2"}

_BLOB_STARTS = (b"\x08", b"\x10", b"\x18", b"\x20", b"\x2a", b"\x3a", b"\x42")


def sniff(path: str | Path) -> Kind:
    """What a file is.

    Raises:
        MissingFileError: It cannot be opened, or is no regular file.
    """
    with open_file(path) as file:
        return KINDS[identify(file.read(HEAD))]


def identify(head: bytes) -> str:
    """The kind of a file, a key of :data:`KINDS`, from its first :data:`HEAD` bytes."""
    if not head:
        return "empty"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"PK\x03\x04"):
        return _zip(head)
    if head[257:262] == b"ustar":
        return "tar"
    if _HTML.match(head):
        return "html"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if not _CONTROL.search(head) and not _is_name(head):
        text = _PROTOTXT.match(head)
        if text and (text["cut"] is None or len(head) >= HEAD):  # a lone word is a net's name in a tiny caffemodel
            return "prototxt"
        if head.lstrip()[:1] in (b"{", b"["):
            return "json"
    return _protobuf(head)


def _is_name(head: bytes) -> bool:
    """Whether a file is a caffemodel of a name and no layers, which may read as text."""
    return 2 < len(head) < 0x80 and head[0] == 0x0A and head[1] == len(head) - 2


def _zip(head: bytes) -> str:
    """The kind of a ZIP archive, by the name of its first file."""
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length]
    if name.endswith(b".npy"):
        return "npz"
    return "torch" if name.endswith((b"/data.pkl", b"/version")) else "zip"


def _protobuf(head: bytes) -> str:
    """Messages of protocol buffers have no magic number; their first fields tell them apart."""
    fields = list(_fields(head))
    if not fields:
        return "unknown"
    if _fits(fields, _NET):
        return "caffemodel"
    if _fits(fields, _SOLVER) and any(_is_solver(number, data) for number, _, data in fields):
        return "solverstate"
    if _fits(fields, _ONNX):
        return "onnx"
    if _fits(fields, _BLOB):
        return "binaryproto"
    # Damaged, or with a fork's fields: its reader says what is wrong, and where.
    return "caffemodel" if _fits(fields[:1], _NET) else "unknown"


def _fits(fields: list[tuple[int, int, bytes]], allowed: dict[int, str]) -> bool:
    return all(str(wire) in allowed.get(number, "") for number, wire, _ in fields)


def _is_solver(number: int, data: bytes) -> bool:
    """Whether a field is the name of a caffemodel, or a blob: an ONNX file has texts there."""
    return (number == 2 and b".caffemodel" in data) or (number == 3 and data[:1] in _BLOB_STARTS)


def _fields(head: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, wire type and (the beginning of) the payload of each field that begins in ``head``."""
    at, end = 0, len(head)
    while at < end:
        tag, at = read_varint(head, at, end)
        if not at:
            return
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            stop = read_varint(head, at, end)[1] or end
        elif wire == 2:
            length, at = read_varint(head, at, end)
            if not at:
                return
            stop = at + length
        else:
            stop = at + {1: 8, 5: 4}.get(wire, end)
        yield number, wire, head[at:stop]
        at = stop
