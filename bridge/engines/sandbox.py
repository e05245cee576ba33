"""ONNX Runtime in a process of its own, for graphs that somebody else made.

A graph may loop for ever, ask for all memory, or crash the runtime. Here it can do that to
a child only, which is ended after a number of seconds and may take no more memory than the budget::

    with Sandbox() as runtime:
        prob = runtime.run(model, ["prob"], {"data": image}, folder)["prob"]
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np

from bridge.errors import ModelError
from bridge.limits.budget import BUDGET, size
from bridge.schema import count

SECONDS = 60.0
"""A run of a graph may take so long; the environment variable BRIDGE_GRAPH_SECONDS says otherwise."""
_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = "session.model_external_initializers_file_folder_path"


class TimeLimitError(ModelError):
    """A graph did not end in its time."""


class Sandbox:
    """A child process that runs graphs, one after the other; a new one is started after one had to be ended."""

    def __init__(self, seconds: float | None = None) -> None:
        given = os.environ.get("BRIDGE_GRAPH_SECONDS", "")
        self.seconds = seconds or (float(given) if given.replace(".", "", 1).isdecimal() else SECONDS)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # for one that is kept longer than a with statement

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._child.wait()
            self._child = None

    def run(
        self, model: bytes, names: Sequence[str], inputs: Mapping[str, np.ndarray], folder: Path
    ) -> dict[str, np.ndarray]:
        """The outputs of a model.

        Args:
            model: The ``ModelProto``.
            names: Its outputs.
            inputs: Input -> array; those that the model does not have are left out.
            folder: Where its external data lie.

        Raises:
            TimeLimitError: It takes too long.
            ModelError: The runtime refuses the model, or it takes too much memory, or ends the runtime.
        """
        request = {f"in:{name}": np.asarray(array) for name, array in inputs.items()}
        request["model"] = np.frombuffer(model, np.uint8)
        texts = {"names": list(names), "folder": str(folder), "seconds": self.seconds}
        said, arrays = self._ask(_pack(texts, request))
        if "error" in said:
            raise ModelError(str(said["error"]))
        return {name: arrays[str(index)] for index, name in enumerate(names)}

    def _ask(self, request: list[memoryview]) -> _Message:
        child = self._child = self._child or self._start()
        talk = _Talk(child, request)
        try:
            return self._answer(child, talk)
        except BaseException:
            child.kill()  # a child in the middle of something cannot be asked again
            talk.join()
            self.close()
            raise

    def _answer(self, child: subprocess.Popen[bytes], talk: _Talk) -> _Message:
        """What the child says, while what it still has to read is written."""
        end = time.monotonic() + self.seconds
        found = bytearray()
        while len(found) < _LENGTHS.size or len(found) < sum(_LENGTHS.unpack_from(found), _LENGTHS.size):
            try:
                piece = talk.pieces.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeLimitError(f"did not end within {self.seconds:g} seconds") from None
            if not piece:
                raise ModelError(f"ended ONNX Runtime ({_ending(child.wait())})")
            found += piece
            BUDGET.check(len(found), "the outputs of the graph")
            talk.more(found)
        talk.join()
        return _unpack(memoryview(found))

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(BUDGET.limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
        )


class _Talk:
    """A request on its way and its answer, by a thread each: Windows cannot wait for one of two pipes."""

    def __init__(self, child: subprocess.Popen[bytes], request: Sequence[memoryview]) -> None:
        self.pieces: queue.Queue[bytes] = queue.Queue(maxsize=8)
        self._wanted = threading.Semaphore(1)
        self._over = False
        self._threads = [
            threading.Thread(target=self._write, args=(cast("IO[bytes]", child.stdin), request), daemon=True),
            threading.Thread(target=self._read, args=(cast("IO[bytes]", child.stdout),), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def more(self, found: bytearray) -> None:
        """Read on where the answer is not complete."""
        self._over = len(found) >= _LENGTHS.size and len(found) >= sum(_LENGTHS.unpack_from(found), _LENGTHS.size)
        self._wanted.release()

    def join(self) -> None:
        """Wait until neither thread uses the pipes; the answer is complete, or the child has ended."""
        self._over = True
        self._wanted.release()
        for thread in self._threads:
            thread.join()

    def _write(self, stream: IO[bytes], request: Sequence[memoryview]) -> None:
        with contextlib.suppress(OSError):  # the child has ended, which reading from it tells
            for part in request:
                rest = part
                while rest.nbytes:
                    rest = rest[os.write(stream.fileno(), rest[: 1 << 20]) :]

    def _read(self, stream: IO[bytes]) -> None:
        piece = b"."
        while piece:
            self._wanted.acquire()
            if self._over:
                return
            try:
                piece = os.read(stream.fileno(), 1 << 20)
            except OSError:
                piece = b""
            self.pieces.put(piece)


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


# -- messages: two lengths, texts as JSON with the arrays' types and shapes, the arrays --------------

_LENGTHS = struct.Struct("<QQ")
_Message = tuple[dict[str, Any], dict[str, np.ndarray]]


def _pack(texts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[memoryview]:
    # ascontiguousarray would make an array (1,) of a scalar
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    listed = [[name, array.dtype.str, array.shape] for name, array in whole.items()]
    head = json.dumps({"texts": texts, "arrays": listed}).encode()
    size = sum(array.nbytes for array in whole.values())
    bodies = [array.reshape(-1).view(np.uint8).data for array in whole.values() if array.size]
    return [memoryview(_LENGTHS.pack(len(head), size) + head), *bodies]


def _unpack(data: memoryview) -> _Message:
    length, _ = _LENGTHS.unpack_from(data)
    at = _LENGTHS.size + length
    head = json.loads(bytes(data[_LENGTHS.size : at]))
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        arrays[name] = np.frombuffer(data, dtype, count(shape), at).reshape(shape)
        at += arrays[name].nbytes
    return head["texts"], arrays


# -- the child --------------------------------------------------------------------------------------


def serve(limit: int) -> None:
    """Answer requests until there are no more.

    Args:
        limit: Bytes of memory that this process may take.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the runtime prints is no answer
    while len(head := source.read(_LENGTHS.size)) == _LENGTHS.size:
        data = bytearray(sum(_LENGTHS.unpack(head), len(head)))
        data[: len(head)] = head
        source.readinto(memoryview(data)[len(head) :])
        texts, arrays = _unpack(memoryview(data))
        _end_after(texts["seconds"])
        for part in _reply(texts, arrays, limit):
            target.write(part)
        target.flush()


def _end_after(seconds: float) -> None:
    """End this process some time later, by the system: its parent may be gone by then."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds) + 5)


def _reply(texts: dict[str, Any], arrays: dict[str, np.ndarray], limit: int) -> list[memoryview]:
    try:
        return _pack({}, _outputs(texts, arrays))
    except MemoryError:
        return _pack({"error": f"takes more than {size(limit)} of memory"}, {})
    except ModelError as error:
        return _pack({"error": str(error.args[0])}, {})


def _outputs(texts: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from bridge.engines.onnxruntime import raised, runtime

    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # a graph runs once
    options.add_session_config_entry(_FOLDER, texts["folder"])
    try:
        session = ort.InferenceSession(arrays["model"].tobytes(), options, providers=["CPUExecutionProvider"])
        fed = {value.name: arrays[f"in:{value.name}"] for value in session.get_inputs()}
        values = session.run(texts["names"], fed)
    except KeyError as error:
        raise ModelError(f"takes an input {error}, which was not given") from None
    except raised() as error:
        raise ModelError(" ".join(str(error).split())) from None
    return {str(index): np.asarray(array, np.float32) for index, array in enumerate(values)}


if __name__ == "__main__":
    serve(int(sys.argv[1]))
