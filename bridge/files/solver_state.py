"""``.solverstate`` and ``.solverstate.h5``: what a solver of Caffe's remembers beside the net."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bridge.caffe_files.proto.encode import field_tag, prefixed
from bridge.caffe_files.varint import varint
from bridge.errors import FormatError
from bridge.files.atomic import atomic, pieces
from bridge.files.sniff import sniff
from bridge.limits.hdf5 import Guard, import_h5py, open_hdf5
from bridge.schema import Blob


@dataclass(frozen=True)
class SolverState:
    """A solver's memory.

    Attributes:
        iteration: How many updates were made.
        learned_net: The file with the parameters; empty if none is named.
        current_step: How many steps of ``step`` or ``multistep`` were taken.
        history: The update rule's arrays: one for each parameter, and for AdaDelta and Adam the second ones after
            all of the first.

    Source: caffe.proto ``SolverState``.
    """

    iteration: int
    learned_net: str
    current_step: int
    history: tuple[Blob, ...]


def read_solver_state(path: str | Path) -> SolverState:
    """Read a solver's state, binary or HDF5, as its content says.

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: It is no solver state, or a damaged one.
        MissingExtraError: It is HDF5, and h5py is not installed.
    """
    kind = sniff(path)
    if kind.name == "hdf5":
        return _read_hdf5(path)
    if kind.name not in ("solverstate", "unknown", "caffemodel"):
        raise FormatError(f"holds {kind.name}", expected="a solverstate", where=str(path))
    rest, history = importlib.import_module("backends.solverstate").read(path)
    if "iter" not in rest:
        raise FormatError("has no iter", expected="a solverstate", where=str(path))
    numbers = [rest.get(name, 0) for name in ("iter", "current_step")]
    return SolverState(int(numbers[0]), rest.text("learned_net"), int(numbers[1]), tuple(history))


def write_solver_state(path: str | Path, state: SolverState, *, hdf5: bool = False) -> None:
    """Write a solver's state, which the real Caffe reads.

    Args:
        path: The file.
        state: The state; arrays become float32.
        hdf5: Whether to write HDF5 in place of protocol buffers.

    Raises:
        OutputError: It cannot be written.
        MissingExtraError: h5py is not installed.

    Source: sgd_solver.cpp ``SnapshotSolverState``.
    """
    with atomic(path) as stream:
        (_write_hdf5 if hdf5 else _write_binary)(stream, state)


def _write_binary(stream: IO[bytes], state: SolverState) -> None:
    learned_net = state.learned_net.encode("utf-8", "surrogateescape")
    stream.write(field_tag(1, 0) + varint(state.iteration) + prefixed(2, learned_net))
    for blob in state.history:
        shape = prefixed(7, prefixed(1, b"".join(map(varint, blob.shape))) if blob.shape else b"")
        nbytes = 4 * blob.size
        head = field_tag(5, 2) + varint(nbytes) if nbytes else b""
        stream.write(field_tag(3, 2) + varint(len(head) + nbytes + len(shape)) + head)
        for piece in pieces(blob, np.float32):
            stream.write(piece)
        stream.write(shape)
    stream.write(field_tag(4, 0) + varint(state.current_step))


def _read_hdf5(path: str | Path) -> SolverState:
    with open_hdf5(path) as (file, guard):
        numbers = [_number(file, guard, name) for name in ("iter", "current_step")]
        history = guard.member("", file, "history")
        count = len(history) if hasattr(history, "keys") else -1
        if count < 0 or any(not str(key).isdigit() or int(key) >= count for key in history):
            raise guard.error("history", "is no group of data sets that are numbered from 0")
        blobs = [Blob.of(_history(history, guard, index)) for index in range(count)]
        name = _learned_net(file, guard)
    return SolverState(numbers[0], name, numbers[1], tuple(blobs))


def _number(file: Any, guard: Guard, name: str) -> int:
    values = guard.numbers("", file, name).reshape(-1)
    if not values.size or values.dtype.kind not in "iu":
        raise guard.error(name, f"holds {values.size} values of {values.dtype}", expected="a whole number")
    return int(values[0])


def _history(group: Any, guard: Guard, index: int) -> np.ndarray:
    return guard.numbers("/history", group, str(index)).astype(np.float32, copy=False)


def _learned_net(file: Any, guard: Guard) -> str:
    """The name of the net's file; Caffe writes it as a C string."""
    if "learned_net" not in file:
        return ""
    data = guard.member("", file, "learned_net")
    guard.check("/learned_net", data)
    value = data[()] if data.shape == () else None
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        raise guard.error("learned_net", "is no text")
    return value.decode("utf-8", "surrogateescape")


def _write_hdf5(stream: IO[bytes], state: SolverState) -> None:
    h5py = import_h5py("")
    with h5py.File(stream, "w") as file:
        file["iter"] = np.array([state.iteration], np.int32)
        file["current_step"] = np.array([state.current_step], np.int32)
        text = state.learned_net.encode("utf-8", "surrogateescape") + b"\0"
        kind = h5py.h5t.C_S1.copy()  # Caffe reads it as a string of C's
        kind.set_size(len(text))
        kind.set_strpad(h5py.h5t.STR_NULLTERM)
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        data = h5py.h5d.create(file.id, b"learned_net", kind, space)
        data.write(space, space, np.array(text, f"S{len(text)}"), kind)
        history = file.create_group("history")
        for index, blob in enumerate(state.history):
            history[str(index)] = blob.numpy().astype(np.float32, copy=False)
