"""Loading: files to a net, by whatever reader can read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.caffe_files import prototxt as text_format
from bridge.caffe_files.assemble import assemble
from bridge.files import readers
from bridge.schema import Net


def load(
    *files: str | Path,
    reader: str = "auto",
    phase: str = "TEST",
    level: int = 0,
    stages: Sequence[str] = (),
    zero_scale_factor: str = "bvlc",
    allow_unknown_fields: bool = False,
    **options: Any,
) -> Net:
    """Load a net.

    Args:
        files: A prototxt, a file of weights, or both in any order; told apart by content.
        reader: Which reader takes the weights; ``auto`` is the first that can.
        phase: ``TEST`` or ``TRAIN``: which layers of the prototxt to take.
        level: The level of Caffe's ``NetState``.
        stages: Its stages.
        zero_scale_factor: ``bvlc`` or ``nvcaffe``: how to read a BatchNorm whose scale factor is 0
            beside other statistics, see :func:`bridge.layers.batch_norm.read_zero_scale_factors`.
        allow_unknown_fields: Let fields of layers pass that nothing here reads and that may change a result: an
            export and a chain go on as if they were not there.
        options: For the reader, such as ``dialect`` or ``python``.

    Raises:
        MissingFileError: A file does not exist.
        FormatError: A file is damaged, or not what it seems.
        UsageError: The files do not make one net, or the reader or an option does not exist.
    """
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
