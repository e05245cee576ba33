"""Damaged files by the thousand: each must end in what it holds or in a FormatError.

    python benchmarks/fuzz.py --runs 1000000 --seed 1 [--formats caffemodel,hdf5,npz,...]

Each run damages one of the small files of a format (see fuzz_formats.py and fuzz_data.py) in one to four places, reads
it, and asks for every array. The runs are done in a child process; one that crashes or hangs costs that child only.
Printed, for each format, is a count of outcomes with the longest run and the most memory that one took. Another
exception, a run of over two seconds, or one that takes more than its file and 64 MB, fails, and its file is kept.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz_data import FORMATS as DATA  # noqa: E402
from benchmarks.fuzz_formats import FORMATS as MODELS  # noqa: E402
from benchmarks.fuzz_formats import Format  # noqa: E402
from bridge.errors import FormatError, MissingFileError  # noqa: E402
from tests import encode  # noqa: E402

FORMATS: dict[str, Format] = {**MODELS, **DATA}
SECONDS = 2.0
HANG = 20.0
"""After so many seconds a child is ended."""
MEMORY = 64 << 20
MOST = 2 << 30
"""What a child may take at all."""
ALLOWED = frozenset({"read", "FormatError", "MissingFileError"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="in all, shared by the formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(FORMATS), help="names between commas")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for the files that failed")
    options = parser.parse_args()
    names = options.formats.split(",")
    failed = False
    for name in names:
        result = Fuzz(name, options.runs // len(names), options.seed, options.keep)
        result.run()
        print(result, flush=True)
        failed |= bool(set(result.outcomes) - ALLOWED)
    return int(failed)


class Fuzz:
    """The runs of one format.

    Attributes:
        outcomes: How many runs ended how.
        seconds, memory: The longest run; the most bytes that one took.
    """

    def __init__(self, name: str, runs: int, seed: int, keep: Path) -> None:
        self.name, self.format, self.runs, self.seed, self.keep = name, FORMATS[name], runs, seed, keep
        self.models = self.format.seeds()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.seconds, self.memory = 0.0, 0

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.runs} runs with seed {self.seed}, the longest {self.seconds:.2f} s, "
                 f"the most memory {self.memory >> 20} MB"]  # fmt: skip
        return "\n".join([*lines, *(f"{count:10d}  {outcome}" for outcome, count in self.outcomes.most_common())])

    def data(self, run: int) -> bytes:
        """The damaged file of a run: a function of seed, format and run."""
        rng = random.Random(f"{self.seed}/{self.name}/{run}")
        return damaged(rng, self.models, self.format)

    def run(self) -> None:
        """All runs, in as many children as it takes."""
        first = 0
        while first < self.runs:
            first = self._child(first)

    def _child(self, first: int) -> int:
        """Runs from ``first`` on in a child; returns the run after the last that it finished, or failed at."""
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which are idle ones of NumPy's
            child = os.fork()
        if not child:
            os.close(reading)
            with os.fdopen(writing, "w", buffering=1) as stream:
                self._work(first, stream)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as stream:
            done, problem = self._listen(stream, first)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if done < self.runs:
            signalled = problem or f"ended by signal {os.WTERMSIG(status)}"
            self._note(done, signalled, 0.0, 0)
            done += 1
        return done

    def _listen(self, stream: IO[bytes], run: int) -> tuple[int, str]:
        pending = b""
        while run < self.runs:
            if not select.select([stream], [], [], HANG)[0]:
                return run, "hangs"
            piece = stream.read(1 << 16)
            if not piece:
                return run, ""
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                seconds, memory, outcome = line.decode().split(" ", 2)
                self._note(run, outcome, float(seconds), int(memory))
                run += 1
        return run, ""

    def _note(self, run: int, outcome: str, seconds: float, memory: int) -> None:
        self.outcomes[outcome] += 1
        self.seconds, self.memory = max(self.seconds, seconds), max(self.memory, memory)
        if outcome not in ALLOWED:
            self.keep.mkdir(exist_ok=True)
            label = "".join(char if char.isalnum() else "-" for char in outcome)[:40]
            (self.keep / f"{self.name}-{self.seed}-{run}-{label}{self.format.suffix}").write_bytes(self.data(run))

    def _work(self, first: int, stream: IO[str]) -> None:
        """What the child does: a line for each run."""
        warnings.simplefilter("ignore")
        faulthandler.disable()  # the parent says what ended this process
        resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"net{self.format.suffix}"
            for run in range(first, self.runs):
                data = self.data(run)
                path.write_bytes(data)
                before, start = _peak(), time.perf_counter()
                outcome = attempt(self.format, path)
                seconds, memory = time.perf_counter() - start, _high() - before
                outcome = f"time ({outcome})" if seconds > SECONDS else outcome
                outcome = f"memory ({outcome})" if memory > len(data) + MEMORY else outcome
                print(f"{seconds:.4f} {memory} {outcome}", file=stream)


def attempt(kind: Format, path: Path) -> str:
    """How reading the file ends."""
    try:
        kind.use(path)
    except (FormatError, MissingFileError) as error:
        return "MissingFileError" if isinstance(error, MissingFileError) else "FormatError"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__} ({error})"[:100].replace("\n", " ")
    return "read"


def _peak() -> int:
    """Bytes in memory now, from where the peak is counted again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _high()


def _high() -> int:
    """The most bytes that were in memory since :func:`_peak`."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


# -- damage ------------------------------------------------------------------------------------------


def damaged(rng: random.Random, models: list[bytes], kind: Format) -> bytes:
    """One of the files, damaged in one to four places."""
    data = bytearray(rng.choice(models))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        if data:
            ways = kind.damages if kind.damages and rng.random() < 0.5 else DAMAGES
            rng.choice(ways)(rng, data, models)
    return bytes(data)


def flip(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def replace(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def cut(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def remove(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 8)]


def insert(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 8))


def varint(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """A number of any size where another was."""
    at = rng.randrange(len(data))
    data[at : at + rng.randint(1, 3)] = encode.varint(rng.getrandbits(rng.choice([7, 14, 31, 32, 63, 64])))


def field(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """A field of any number and type, in the middle of things."""
    at = rng.randrange(len(data))
    number = rng.choice([rng.randint(1, 15), rng.randint(1, 210), rng.getrandbits(29)])
    data[at:at] = encode.tag(number, rng.randrange(8)) + encode.varint(rng.choice([0, 1, 4, 8, 100]))


def splice(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Part of another model, in place of part of this one."""
    other = rng.choice(models)
    at, start = rng.randrange(len(data)), rng.randrange(len(other))
    size = rng.randint(1, 200)
    data[at : at + size] = other[start : start + size]


DAMAGES = (flip, replace, cut, remove, insert, varint, field, splice)


if __name__ == "__main__":
    sys.exit(main())
