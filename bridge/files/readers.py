"""The table of readers: what each can read, and what it needs.

A reader is a module ``backends.NAME`` with one function
``read(path, *, prototxt=None, **options) -> RawNet``. This table names it and its
needs, so that nothing is imported before a file calls for it. A new reader is one
module and one line here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.caffe_files import prototxt as text_format
from bridge.caffe_files.assemble import assemble
from bridge.errors import INSTALL_CHAINER, FormatError, MissingExtraError, UsageError
from bridge.files.sniff import Kind, sniff
from bridge.schema import Blob, RawNet


@dataclass(frozen=True)
class Reader:
    """One line of the table.

    Attributes:
        name: Its name on the command line, and of its module in ``backends``.
        kinds: Kinds of content it reads, as :mod:`bridge.files.sniff` names them.
        summary: What it is, for ``bridge doctor``.
        needs: Packages that must be installed.
        hint: How to get them.
        options: Names of the options that its ``read`` takes.
        probed: Whether only its module's ``missing()`` can tell if it works.
        defined: Whether its ``read`` must be given the net's definition: a prototxt, or
            the text of one as ``definition``.
    """

    name: str
    kinds: tuple[str, ...]
    summary: str
    needs: tuple[str, ...] = ()
    hint: str = ""
    options: tuple[str, ...] = ()
    probed: bool = False
    defined: bool = False

    @property
    def module(self) -> str:
        """Name of the module that holds its ``read``."""
        return f"backends.{self.name}"


@dataclass(frozen=True)
class Status:
    """Whether a reader works here; ``problem`` and ``hint`` are empty if it does."""

    name: str
    summary: str
    problem: str = ""
    hint: str = ""

    @property
    def works(self) -> bool:
        """True if files can be read with it."""
        return not self.problem


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("protobuf", ("caffemodel",), "caffemodel, straight from the bytes", options=("dialect",)),
        Reader("hdf5", ("hdf5",), "Caffe's .caffemodel.h5", ("h5py",), "pip install h5py"),
        Reader("safetensors", ("safetensors",), "safetensors, as bridge convert writes it"),
        Reader("npz", ("npz",), "NumPy archive, as bridge convert writes it"),
        Reader("onnx", ("onnx",), "ONNX, as bridge export writes it"),
        Reader(
            "caffefunction",
            ("caffemodel",),
            "caffemodel, through Chainer's CaffeFunction",
            ("chainer",),
            INSTALL_CHAINER,
        ),
        Reader(
            "pycaffe",
            ("caffemodel", "hdf5"),
            "caffemodel, through the real Caffe in another interpreter",
            options=("python", "timeout"),
            probed=True,
            defined=True,
        ),
    )
}
"""Name -> reader; where several read one kind, ``auto`` takes the first."""


def split_files(files: Sequence[str | Path]) -> tuple[Path | None, Path | None]:
    """Tell prototxt from weights, by content; the order does not matter.

    Args:
        files: ``[PROTOTXT] WEIGHTS``, or a prototxt alone.

    Returns:
        The prototxt and the weights, each ``None`` if not given.

    Raises:
        UsageError: Nothing given, or two of one sort.
        MissingFileError: A file cannot be opened.
        FormatError: One of two files is neither, such as a web page that was saved as a prototxt.
    """
    if not 1 <= len(files) <= 2:
        raise UsageError(f"expected [PROTOTXT] WEIGHTS, found {len(files)} files", hint="give the files of one model")
    found: dict[bool, Path] = {}
    for file in map(Path, files):
        kind = kind_of(file)
        text = kind.name == "prototxt"
        if len(files) > 1 and kind.problem:
            raise FormatError(kind.problem, where=str(file), hint=kind.hint)
        if text in found:
            sort = "prototxt" if text else "weights"
            raise UsageError(
                f"two files with {sort}: '{found[text]}' and '{file}'",
                hint="expected a prototxt and weights; '--against' takes a second model",
            )
        found[text] = file
    return found.get(True), found.get(False)


def kind_of(path: str | Path) -> Kind:
    """What a file holds, from its first bytes.

    Raises:
        MissingFileError: It does not exist, cannot be opened, or is no regular file.
    """
    return sniff(path)


def readers_of(path: str | Path) -> list[str]:
    """Names of the readers for the content of the file, whether they work here or not."""
    kind = kind_of(path).name
    return [reader.name for reader in READERS.values() if kind in reader.kinds]


def status(name: str, *, thorough: bool = False, python: str | None = None) -> Status:
    """Whether a reader works here.

    Args:
        name: The reader.
        thorough: Start what it needs, to be sure; else nothing heavy is imported or started.
        python: Another interpreter that the reader is to use, if it uses one.

    Raises:
        UsageError: There is no reader of that name.
    """
    reader = find(name)
    for need in reader.needs:
        if importlib.util.find_spec(need) is None:
            return Status(name, reader.summary, f"{need} is not installed", reader.hint)
    if reader.probed:
        problem: MissingExtraError | None = importlib.import_module(reader.module).missing(python, thorough=thorough)
        if problem:
            return Status(name, reader.summary, str(problem.args[0]).removeprefix(f"{name}: "), problem.hint)
    return Status(name, reader.summary)


def available(*, thorough: bool = False) -> list[Status]:
    """The status of every reader, in the order of the table."""
    return [status(name, thorough=thorough) for name in READERS]


def find(name: str) -> Reader:
    """The reader of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in READERS:
        raise UsageError(f"no reader '{name}'", hint=f"readers: auto, {', '.join(READERS)}")
    return READERS[name]


def read(weights: str | Path, prototxt: str | Path | None = None, reader: str = "auto", **options: Any) -> RawNet:
    """Read a file of weights.

    Args:
        weights: The file.
        prototxt: The net's definition, for the readers that need one.
        reader: A name of the table, or ``auto`` for the first that reads the file's content.
        options: Options of readers; those that the one in use does not have are left out.

    Raises:
        MissingFileError: A file cannot be opened.
        FormatError: The file's content is nothing that is read here, or is damaged.
        UsageError: No such reader or option, or the named one does not read such content.
        MissingExtraError: The reader needs a package that is not installed.
    """
    kind = kind_of(weights)
    chosen = _chosen(kind, str(weights), reader)
    fit = _fitting(options, chosen)
    state = status(chosen.name)
    if not state.works and not chosen.probed:
        raise MissingExtraError(f"reader '{chosen.name}': {state.problem}", where=str(weights), hint=state.hint)
    if chosen.defined and prototxt is None and kind.name == "caffemodel":
        fit["definition"] = text_format.format(assemble(read(weights)).to_message())
    net: RawNet = importlib.import_module(chosen.module).read(Path(weights), prototxt=prototxt, **fit)
    return net


def read_mean(path: str | Path) -> Blob:
    """Read a mean image, a ``.binaryproto`` file; see :func:`backends.protobuf.read_mean`."""
    blob: Blob = importlib.import_module("backends.protobuf").read_mean(path)
    return blob


def _chosen(kind: Kind, where: str, name: str) -> Reader:
    """The named reader, or the first, for a kind of content."""
    able = [reader for reader in READERS.values() if kind.name in reader.kinds]
    if not able:
        raise FormatError(kind.problem or f"holds {kind.name}, expected weights", where=where, hint=kind.hint)
    chosen = able[0] if name == "auto" else find(name)
    if chosen not in able:
        hint = f"readers for it: {', '.join(reader.name for reader in able)}"
        raise UsageError(f"holds {kind.name}, which reader '{name}' does not read", where=where, hint=hint)
    return chosen


def _fitting(options: dict[str, Any], chosen: Reader) -> dict[str, Any]:
    """The options that the chosen reader has."""
    known = {option for reader in READERS.values() for option in reader.options}
    if unknown := sorted(set(options) - known):
        raise UsageError(f"no reader has an option '{unknown[0]}'", hint=f"options: {', '.join(sorted(known))}")
    return {name: value for name, value in options.items() if name in chosen.options}
