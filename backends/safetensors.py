"""Reader of ``.safetensors`` files, whole models or plain arrays.

The format is a length, a header of JSON, and the arrays. Read here rather than by the
library, so that arrays are views into the memory map like those of the other readers,
and so that reading what the tool wrote needs nothing installed.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from backends.mapped import mapped_blob
from backends.wire import FileBytes
from bridge.errors import FormatError
from bridge.files.manifest import restore
from bridge.limits.budget import check_json, parse_json
from bridge.schema import Blob, RawNet, count

_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_LONGEST_HEADER = 100_000_000
"""The format's own limit."""


def read(path: str | Path, *, prototxt: str | Path | None = None) -> RawNet:
    """Read a safetensors file.

    Args:
        path: The file.
        prototxt: Orders the blobs of each layer where the file has no definition of its own.

    Returns:
        A whole net if the tool wrote the file, else names and blobs. Blobs are float32,
        float64 or float16 as stored.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is not as the format demands, or holds other types.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    source = FileBytes.open(path)
    texts, listed, start = _header(source)
    _check_extents(source, listed, start)
    stored = {key: _blob(source, key, entry, start) for key, entry in listed.items()}
    return restore(texts, stored, prototxt, source=path, reader="safetensors")


def _header(source: FileBytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Metadata, entries, and the byte at which the arrays begin."""
    size = int.from_bytes(source.buffer[:8], "little")
    if source.size < 8 or size > min(source.size - 8, _LONGEST_HEADER):
        room = max(0, source.size - 8)
        raise source.error(0, f"header of {size} bytes, of which the file has {room}", "the file looks truncated")
    text = bytes(source.buffer[8 : 8 + size])
    if problem := check_json(text, source.size):
        raise source.error(8, f"the header {problem}")
    try:
        header = parse_json(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise source.error(8, f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise source.error(8, "the header is not a JSON object")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict):
        raise source.error(8, "__metadata__ is not a JSON object")
    return texts, header, 8 + size


def _check_extents(source: FileBytes, listed: dict[str, Any], start: int) -> None:
    """The arrays must fill the file without gap or overlap; that is the format's rule."""
    for key, entry in listed.items():
        if not key.isascii() and any("\ud800" <= char <= "\udfff" for char in key):
            raise source.error(8, f"array {key!a} has half a character in its name")
        match entry:
            case {"dtype": str(), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
                if 0 <= first <= last and all(type(extent) is int and extent >= 0 for extent in shape):
                    continue
        raise source.error(8, f"array '{key}' is not described by dtype, shape and data_offsets")
    spans = sorted(tuple(entry["data_offsets"]) for entry in listed.values())
    for (_, stop), (first, _) in pairwise([(0, 0), *spans, (source.size - start, 0)]):
        if stop != first:
            raise source.error(start + stop, f"an array ends here, the next begins at byte {start + first}")


def _blob(source: FileBytes, key: str, entry: dict[str, Any], start: int) -> Blob:
    dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _DTYPES:
        raise FormatError(f"array '{key}' has type {dtype}", expected=f"{', '.join(_DTYPES)}", where=source.name)
    nbytes = count(shape) * int(_DTYPES[dtype][2:])
    if last - first != nbytes:
        raise source.error(start + first, f"array '{key}' has {last - first} bytes", expected=f"{nbytes}")
    return mapped_blob(source, start + first, tuple(shape), _DTYPES[dtype], f"array '{key}'")
