"""Writing a net's weights: one module per format, each with ``write(net, stream)``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from bridge.caffe_files.fields import refuse_unknown_fields
from bridge.errors import ModelError, UsageError
from bridge.files.atomic import atomic, check_sources, refuse_sources
from bridge.schema import Net
from bridge.schema.net import distinct

__all__ = ["FORMATS", "Format", "format_of", "save"]


@dataclass(frozen=True)
class Format:
    """One line of the table: a format's name, the endings of its files, and the options of its ``write``.

    ``home`` is the module that has its ``write``, where that is not the one of its name in this package; ``runs`` is
    whether the file is for another runtime that computes the net.
    """

    name: str
    summary: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...] = ()
    home: str = ""
    runs: bool = False

    @property
    def module(self) -> str:
        """The module that has its ``write``."""
        return self.home or f"{__name__}.{self.name}"


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "chainer_npz",
            "Chainer's NumPy archive, for the chain of bridge.build_chain",
            (".chainer.npz",),
            home="bridge.chain.archive",
            runs=True,
        ),
        Format("npz", "NumPy archive", (".npz",)),
        Format("safetensors", "safetensors", (".safetensors",)),
        Format("hdf5", "Caffe's HDF5 weights", (".caffemodel.h5", ".h5", ".hdf5")),
        Format("caffemodel", "Caffe's binary weights (V2)", (".caffemodel",), ("half", "dialect")),
    )
}
"""Name -> format; the first whose suffix fits is taken."""

_ALIASES = {"chainer": "chainer_npz", "h5": "hdf5"}


def save(
    net: Net,
    path: str | Path,
    format: str | None = None,
    *,
    half: bool | None = None,
    dialect: str | None = None,
) -> None:
    """Write the net's weights; the file is written whole or not at all.

    Args:
        net: The net; layers of unknown types are written as well.
        path: The file.
        format: A name of :data:`FORMATS`, such as ``npz``; by default the file's suffix decides.
        half: Keep float16 values as they are, as NVCaffe does; for ``caffemodel``.
        dialect: The fork whose field numbers parameters get, such as ``nvcaffe``; for ``caffemodel``.

    Raises:
        UsageError: The format is not known, or does not have a given option; or the path is the net's prototxt, or
            external data of its weights.
        ChangedError: A file that the net was read from has changed.
        ModelError: The reader could not deliver a layer's blobs.
        UnknownFieldError: The format is another runtime's, and a layer has a field that may change what it computes.
        OutputError: The file cannot be written.
        MissingExtraError: The format needs a package that is not installed.
    """
    chosen = format_of(path, format)
    options = {name: value for name, value in (("half", half), ("dialect", dialect)) if value is not None}
    if unknown := sorted(set(options) - set(chosen.options)):
        has = f"its options: {', '.join(chosen.options)}" if chosen.options else "it has none"
        raise UsageError(f"format {chosen.name} has no option '{unknown[0]}'", where=str(path), hint=has)
    module = importlib.import_module(chosen.module)
    if chosen.runs:
        refuse_unknown_fields(net)
    lacking = [layer for layer in net.layers if layer.uncovered]
    if lacking:
        raise ModelError(f"{lacking[0].label} cannot be written: {lacking[0].uncovered}", where=net.where)
    parts = {blob.location.path for blob in distinct(net.layers) if blob.location is not None}
    # The file of weights itself may be replaced: what is mapped lives on. Its definition and external data may not.
    refuse_sources(sorted({*net.sources[:-1], *parts} - {*net.sources[-1:]}), [path])
    with atomic(path) as stream:
        module.write(net, stream, **options)
        check_sources(net)


def format_of(path: str | Path, name: str | None = None) -> Format:
    """The format of that name, or the one whose suffix the path has.

    Raises:
        UsageError: There is none.
    """
    known = f"formats: {', '.join(FORMATS)}"
    if name is not None:
        chosen = FORMATS.get(_ALIASES.get(name, name))
        if chosen is None:
            raise UsageError(f"no format '{name}'", hint=known)
        return chosen
    for entry in FORMATS.values():
        if str(path).lower().endswith(entry.suffixes):
            return entry
    if str(path).lower().endswith(".onnx"):
        raise UsageError("ONNX is written by 'bridge export'", where=str(path))
    raise UsageError("its suffix is that of no format", where=str(path), hint=f"name one with --format; {known}")
