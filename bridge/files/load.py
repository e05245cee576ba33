"""Loading: from files to a net, with the reader that fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bridge.caffe_files import prototxt as text_format
from bridge.caffe_files.assemble import assemble
from bridge.files import readers
from bridge.schema import Net


class Reading(TypedDict, total=False):
    """How files are read: the arguments of :func:`load` other than the files."""

    reader: str
    phase: str
    level: int
    stages: Sequence[str]
    zero_scale_factor: str
    allow_unknown_fields: bool
    dialect: str
    pycaffe_python: str
    python: str
    timeout: float


def load(
    *files: str | Path,
    reader: str = "auto",
    phase: str = "TEST",
    level: int = 0,
    stages: Sequence[str] = (),
    zero_scale_factor: str = "bvlc",
    allow_unknown_fields: bool = False,
    dialect: str | None = None,
    pycaffe_python: str | None = None,
    timeout: float | None = None,
    python: str | None = None,
) -> Net:
    """Load a net.

    Args:
        files: A prototxt, a file of weights, or both in any order; told apart by content.
        reader: The reader that takes the weights; ``auto`` is the first that can.
        phase: ``TEST`` or ``TRAIN``: which layers of the prototxt to take.
        level: The level of Caffe's ``NetState``.
        stages: Its stages.
        zero_scale_factor: ``bvlc`` or ``nvcaffe``: how to read a BatchNorm whose scale factor is 0
            beside other statistics, see :func:`bridge.layers.batch_norm.read_zero_scale_factors`.
        allow_unknown_fields: Let fields of layers pass that nothing here reads and that may change a result: an
            export and a chain go on as if they were not there.
        dialect: The fork whose field numbers a caffemodel has, such as ``nvcaffe``; for the reader ``protobuf``.
        pycaffe_python: Interpreter that has the real Caffe; for the reader ``pycaffe``.
        timeout: Seconds that the reader ``pycaffe`` may take.
        python: Older word for ``pycaffe_python``.

    Raises:
        MissingFileError: A file does not exist.
        FormatError: A file is damaged, or not what it seems.
        UsageError: The files do not make one net, or the reader or an option does not exist.

    Source: pycaffe's ``caffe.Net(prototxt, caffemodel, phase, level=, stages=)``.
    """
    options = reader_options({"dialect": dialect, "pycaffe_python": pycaffe_python or python, "timeout": timeout})
    definition, weights = readers.split_files(files)
    raw = readers.read(weights, definition, reader=reader, **options) if weights else None
    parsed = text_format.parse_file(definition) if definition else None
    sources = [str(file) for file in (definition, weights) if file]
    return assemble(
        raw,
        parsed,
        phase=phase,
        level=level,
        stages=stages,
        zero_scale_factor=zero_scale_factor,
        allow_unknown_fields=allow_unknown_fields,
        sources=sources,
    )


def reader_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, under the names that readers have for them."""
    names = {"pycaffe_python": "python"}
    return {names.get(name, name): value for name, value in given.items() if value is not None}
