"""Damaged caffemodels by the thousand: each must end in a Net or a FormatError.

    python benchmarks/fuzz.py --runs 1000000 --seed 1

Each run damages one of the small models (every generation, every encoding of values) in
one to four places, loads it, and asks for every array. Printed is a count of outcomes;
anything but a Net or a FormatError, a run of over two seconds, or one that allocates more
than its file and 16 MB (looked at in each 50th run) fails, and its file is kept.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from bridge.caffe_files.prototxt import parse  # noqa: E402
from bridge.errors import FormatError  # noqa: E402
from tests import encode  # noqa: E402

SECONDS = 2.0
MEMORY = 16 << 20
LOOK = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for the files that failed")
    options = parser.parse_args()
    rng, models = random.Random(options.seed), seeds()
    outcomes: collections.Counter[str] = collections.Counter()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.caffemodel"
        for run in range(options.runs):
            data = damaged(rng, models)
            path.write_bytes(data)
            outcome = attempt(path, len(data), look=run % LOOK == 0)
            outcomes[outcome] += 1
            if outcome not in ("Net", "FormatError"):
                options.keep.mkdir(exist_ok=True)
                (options.keep / f"{options.seed}-{run}-{outcome.split()[0]}").write_bytes(data)
    for outcome, count in outcomes.most_common():
        print(f"{count:10d}  {outcome}")
    print(f"{options.runs:10d}  runs with seed {options.seed}, {time.perf_counter() - start:.0f} s")
    return int(bool(set(outcomes) - {"Net", "FormatError"}))


def attempt(path: Path, size: int, look: bool) -> str:
    """How loading the file ends."""
    if look:
        tracemalloc.start()
    start = time.perf_counter()
    try:
        for layer in bridge.load(path):
            for array in layer.blobs.values():
                array.copy()
        outcome = "Net"
    except FormatError:
        outcome = "FormatError"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = f"{type(error).__name__} ({error})"[:100]
    seconds = time.perf_counter() - start
    if look:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > size + MEMORY:
            outcome = f"memory ({outcome})"
    return f"time ({outcome})" if seconds > SECONDS else outcome


# -- models and damage -----------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Small models: each generation with each encoding, and some that Caffe wrote."""
    shape = (2, 3, 2, 1)
    values = np.random.default_rng(0).standard_normal(shape)
    text = """name: "c" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 1 decay_mult: 0.5 }
      convolution_param { num_output: 2 kernel_size: 2 pad: 1 weight_filler { type: "xavier" } }"""
    relu = parse('name: "r" type: "ReLU" bottom: "c" top: "c"')
    models = []
    for generation in ("V0", "V1", "V2"):
        for style in encode.VALUES:
            for form in ("shape", "legacy"):
                blobs = [encode.blob(values, style, form), encode.blob(values[0, 0], style, diff=True)]
                rest = parse('name: "n" input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4')
                models.append(encode.net([(parse(text), blobs), (relu, [])], generation, rest))
    golden = (ROOT / "fixtures" / "golden").glob("*/weights.caffemodel")
    return models + [data for data in (path.read_bytes() for path in sorted(golden)) if len(data) < 4000]


def damaged(rng: random.Random, models: list[bytes]) -> bytes:
    """One of the models, damaged in one to four places."""
    data = bytearray(rng.choice(models))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        if data:
            rng.choice(DAMAGES)(rng, data, models)
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
