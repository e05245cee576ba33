"""The child process in which the real Caffe runs, and how to speak with it."""

from __future__ import annotations

import atexit
import contextlib
import importlib.resources
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from bridge.errors import BridgeError, FormatError, MissingExtraError, ModelError, UnsupportedLayerError
from bridge.schema import count

VARIABLE = "BRIDGE_PYCAFFE_PYTHON"
HINT = f"name an interpreter that can import caffe with --pycaffe-python or {VARIABLE}"
TIMEOUT = 600.0
"""Seconds that one request may take before the child counts as hung."""

Answer = tuple[dict[str, Any], list[np.ndarray]]
"""Header and arrays of one message."""

_MAGIC = b"BRDG"
_LONGEST_HEADER = 1 << 26
_FATAL = re.compile(r"^F\d{4,8} \S+ +\d+ [^\]\n]*\] (?P<text>.*)$", re.MULTILINE)
_PARSER = re.compile(r"^\[libprotobuf ERROR [^\]\n]*\] (?P<text>.*)$", re.MULTILINE)


def command_of(python: str | None = None) -> tuple[str, ...]:
    """The command that starts the interpreter, split as a shell would.

    Raises:
        MissingExtraError: None is named, and this interpreter has no caffe either.
    """
    text = python or os.environ.get(VARIABLE, "")
    if text:
        return (text,) if Path(text).is_file() else tuple(shlex.split(text))
    if importlib.util.find_spec("caffe") is not None:
        return (sys.executable,)
    raise MissingExtraError("no interpreter with Caffe is named", where="pycaffe", hint=HINT)


def missing(python: str | None = None, *, thorough: bool = False) -> MissingExtraError | None:
    """Why Caffe cannot be reached; ``None`` if it can.

    Args:
        python: Command of the interpreter that has Caffe.
        thorough: Start it; else only see whether it is named and exists.
    """
    try:
        command = command_of(python)
        if shutil.which(command[0]) is None:
            raise MissingExtraError(f"'{command[0]}' is not an executable", where="pycaffe", hint=HINT)
        if thorough:
            running(python)
    except MissingExtraError as error:
        return error
    return None


def versions(python: str | None = None, timeout: float = TIMEOUT) -> dict[str, str]:
    """Versions of caffe, numpy and python over there; starts the child.

    Raises:
        MissingExtraError: It cannot be started, or cannot import caffe.
    """
    hello = running(python, timeout).hello
    return {key: str(hello.get(key, "")) for key in ("caffe", "numpy", "python")}


def layer_types(python: str | None = None, timeout: float = TIMEOUT) -> frozenset[str]:
    """The layer types that Caffe over there has; errors as of :func:`versions`."""
    return frozenset(map(str, running(python, timeout).hello.get("types", ())))


class Child:
    """A child process with Caffe in it; one request at a time, each within a time limit.

    Attributes:
        hello: What it said of itself: versions, and the layer types that it knows.
    """

    def __init__(self, command: tuple[str, ...], timeout: float) -> None:
        self.command = " ".join(command)
        script = importlib.resources.files("backends.pycaffe").joinpath("worker.py").read_text("utf-8")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the child
        self._lock = threading.Lock()
        try:
            self._process = subprocess.Popen(
                # The folder that it happens to be started in is no place to import from.
                [*command, "-c", f"import sys; sys.path[:] = filter(None, sys.path)\n{script}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            self._errors.close()
            problem = f"'{self.command}' cannot be started: {error.strerror}"
            raise MissingExtraError(problem, where="pycaffe", hint=HINT) from None
        self._requests: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        self._answers: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        self.hello = self._greet(timeout)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], arrays: Sequence[np.ndarray], timeout: float, where: str) -> Answer:
        """One request and its answer.

        Raises:
            ModelError: Caffe raised or aborted.
            BridgeError: No answer in time, or none that makes sense; the child is ended.
        """
        with self._lock:
            answer = self._exchange(request, arrays, timeout, where)
        if "error" in answer[0]:
            raise ModelError(f"Caffe says: {answer[0]['error']}", where=where)
        return answer

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self._answers, self._errors):
            with contextlib.suppress(OSError):  # what it did not take any more is of no use to anybody
                stream.close()

    def _greet(self, timeout: float) -> dict[str, Any]:
        try:
            hello = self._exchange(None, (), timeout, "pycaffe")[0]
        except BridgeError as error:
            self.close()
            problem = f"'{self.command}' does not answer: {error.args[0]}"
            raise MissingExtraError(problem, hint=HINT) from None
        if "error" in hello:
            self.close()
            raise MissingExtraError(
                f"'{self.command}' cannot import caffe: {hello['error']}", where="pycaffe", hint=HINT
            )
        return hello

    def _exchange(
        self, request: dict[str, Any] | None, arrays: Sequence[np.ndarray], timeout: float, where: str
    ) -> Answer:
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        clock = threading.Timer(timeout, end)
        clock.daemon = True
        clock.start()
        try:
            if request is not None:
                _send(self._requests, request, arrays)
            return _receive(self._answers)
        except (OSError, EOFError, ValueError) as error:
            raise self._obituary(late.is_set(), timeout, error, where) from None
        except BaseException:  # interrupted: what is left in the pipe would answer the wrong question
            self._process.kill()
            raise
        finally:
            clock.cancel()

    def _obituary(self, late: bool, timeout: float, error: Exception, where: str) -> BridgeError:
        """The error that tells why the child gave no answer; ends it if it still runs."""
        if isinstance(error, ValueError):
            self._process.kill()
        status = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - (1 << 16)))
        text = self._errors.read().decode("utf-8", "replace")
        self.close()
        fatal = [match["text"] for match in _FATAL.finditer(text)]
        if late:
            hint = "give it a longer timeout"
            return BridgeError(f"no answer from Caffe within {timeout:g} s", where=where, hint=hint)
        if isinstance(error, ValueError):
            hint = "its stdout must be a plain pipe, no terminal"
            return BridgeError(f"'{self.command}' {error}", where=where, hint=hint)
        if fatal:
            return _abort(fatal[-1], [match["text"] for match in _PARSER.finditer(text)], where)
        last = (text.strip().splitlines() or [""])[-1]
        return BridgeError(f"Caffe ended {_ending(status)}{last and ': '}{last}", where=where)


def _abort(fatal: str, parser: list[str], where: str) -> BridgeError:
    """The error for Caffe's last words, with what its parser of messages said before."""
    reason = re.sub(r"^Check failed: ", "", fatal).split(" (known types:")[0]
    if "Failed to parse" in fatal and parser:
        reason = parser[-1]
    text = f"Caffe says: {reason}"
    if "Unknown layer type" in reason or "has no field named" in reason:
        return UnsupportedLayerError(text, where=where, hint="this build of Caffe is not the fork that the net is for")
    return (FormatError if "Failed to parse" in fatal else ModelError)(text, where=where)


def _ending(status: int) -> str:
    if status >= 0:
        return f"with exit status {status}"
    return f"by signal {signal.Signals(-status).name}"


def _send(stream: IO[bytes], header: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
    listed = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps({**header, "arrays": listed}).encode()
    stream.write(struct.pack("<4sQ", _MAGIC, len(text)) + text)
    for array in arrays:
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Answer:
    """Read one message.

    Raises:
        EOFError: The stream ended.
        ValueError: What came is not a message.
    """
    magic, size = struct.unpack("<4sQ", _exactly(stream, 12))
    if magic != _MAGIC or size > _LONGEST_HEADER:
        raise ValueError("does not speak as agreed")
    header = json.loads(_exactly(stream, size))
    return header, [_array(stream, *entry) for entry in header.pop("arrays")]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _array(stream: IO[bytes], dtype: str, shape: list[int]) -> np.ndarray:
    if dtype != "<f4" or any(extent < 0 for extent in shape):
        raise ValueError(f"sends {dtype} {shape}, expected float32")
    data = _exactly(stream, 4 * count(shape))
    return np.frombuffer(data, dtype).astype(np.float32, copy=False).reshape(shape)


_children: dict[tuple[str, ...], Child] = {}


def running(python: str | None = None, timeout: float = TIMEOUT) -> Child:
    """The child of that command; started once, and again if it died.

    Raises:
        MissingExtraError: It cannot be started, or cannot import caffe.
    """
    command = command_of(python)
    if command not in _children or not _children[command].alive:
        _children[command] = Child(command, timeout)
    return _children[command]


@atexit.register
def close_children() -> None:
    """End every child."""
    while _children:
        _children.popitem()[1].close()
