"""Reader of ``.solverstate`` files: what a solver remembers beside the net, straight from the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.stored import Stored
from backends.wire import LENGTH, FileBytes, Span, put
from bridge.caffe_files.proto import schema
from bridge.schema import Blob
from bridge.schema.message import Message


def read(path: str | Path) -> tuple[Message, list[Blob]]:
    """The fields of a ``SolverState`` without its history, and the history.

    Args:
        path: The file.

    Returns:
        The fields, and the arrays as views into the file.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is damaged.

    Source: caffe.proto ``SolverState``.
    """
    source = FileBytes.open(path)
    span = Span(source, 0, source.size, schema("SolverState"), "SolverState")
    rest = Message(str(path))
    history: list[Blob] = []
    for entry in span.fields():
        field: Any = span.schema.by_number.get(entry[0])
        if field is not None and field.name == "history" and entry[1] == LENGTH:
            label = f"history[{len(history)}]"
            child = span.child(label, entry[2], entry[3], schema("BlobProto"))
            history.append(Stored(child).blob(label))
        else:
            put(rest, span, field, entry)
    return rest, history
