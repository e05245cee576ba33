"""Damaged prototxts by the thousand: each must end in a net, an export and a chain, or in a BridgeError.

    python benchmarks/fuzz_prototxt.py --runs 100000 --seed 1

Each run damages the prototxt of one of the small models, or of the models in BRIDGE_ZOO, in one
to four places: its text, or the fields and values of its messages. It is loaded with the model's
weights or without, exported to ONNX, and built as a chain. Printed is a count of outcomes; an
exception that is no BridgeError, a warning, a run of over ten seconds, or one that allocates more
than a gigabyte (looked at in each 20th run) fails, and its prototxt is kept.
"""

from __future__ import annotations

import argparse
import collections
import random
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from bridge.caffe_files import prototxt  # noqa: E402
from bridge.errors import BridgeError  # noqa: E402
from bridge.schema.message import Message, Symbol, Value  # noqa: E402
from tests.conftest import GOLDEN, ZOO  # noqa: E402

SECONDS = 10
MEMORY = 1 << 30
LOOK = 20
ALLOWED = frozenset({"ends", "BridgeError"})


class Model(NamedTuple):
    """A prototxt, and the weights that belong to it."""

    text: str
    weights: Path
    parsed: Message


class Slow(BaseException):
    """A run took too long."""


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
        for run in range(options.runs):
            model, text = damaged(rng, models)
            weights = model.weights if rng.random() < 0.7 else None
            outcome = attempt(Path(folder), text, weights, look=run % LOOK == 0)
            outcomes[outcome] += 1
            if outcome not in ALLOWED:
                options.keep.mkdir(exist_ok=True)
                name = f"{options.seed}-{run}-{outcome.split()[0]}-{weights.parent.name if weights else 'alone'}"
                (options.keep / f"{name}.prototxt").write_text(text)
    for outcome, count in outcomes.most_common():
        print(f"{count:10d}  {outcome}")
    print(f"{options.runs:10d}  runs with seed {options.seed}, {time.perf_counter() - start:.0f} s")
    return int(bool(set(outcomes) - ALLOWED))


def attempt(folder: Path, text: str, weights: Path | None, look: bool) -> str:
    """How loading, exporting and building the net end."""
    path = folder / "net.prototxt"
    path.write_text(text)
    if look:
        tracemalloc.start()
    try:
        with _Alarm(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)  # what a writer leaves out, and says so
            outcome = _stages(path, weights)
    except Slow:
        outcome = "time"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = f"{type(error).__name__} ({error})"[:100].replace("\n", " ")
    if look:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        outcome = f"memory ({outcome})" if peak > MEMORY else outcome
    return outcome


def _stages(path: Path, weights: Path | None) -> str:
    try:
        net = bridge.load(path, weights) if weights else bridge.load(path)
    except BridgeError:
        return "BridgeError"
    fails = 0
    stages: tuple[Callable[[], Any], ...] = (
        net.infer,
        lambda: bridge.export_onnx(net, path.with_suffix(".onnx"), check=False),
        lambda: bridge.build_chain(net),
        *(lambda suffix=suffix: _again(net, path.with_suffix(suffix)) for suffix in (".npz", ".caffemodel")),  # type: ignore[misc]
    )
    for stage in stages:
        try:
            stage()
        except BridgeError:
            fails += 1
    return "BridgeError" if fails else "ends"


def _again(net: bridge.Net, path: Path) -> None:
    """Write the net, and read it back."""
    bridge.save(net, path)
    bridge.load(path).infer()


class _Alarm:
    """Raises :class:`Slow` where the work within takes too long."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, *_: object) -> None:
        raise Slow


# -- models and damage -----------------------------------------------------------------------


def seeds() -> list[Model]:
    """The golden models, and the others where they are."""
    found = [path / "deploy.prototxt" for path in GOLDEN]
    found += sorted(path for path in ZOO.glob("*/*.prototxt") if path.stat().st_size < 20_000)
    models = []
    for path in found:
        weights = path.with_name("weights.caffemodel")
        weights = weights if weights.exists() else path.with_suffix(".caffemodel")
        if weights.exists():
            models.append(Model(path.read_text(), weights, prototxt.parse_file(path)))
    return models


def damaged(rng: random.Random, models: list[Model]) -> tuple[Model, str]:
    """One of the models, and its prototxt damaged in one to four places."""
    model = rng.choice(models)
    if rng.random() < 0.2:
        text = bytearray(model.text.encode())
        for _ in range(rng.choice([1, 1, 2, 4])):
            _damage_text(rng, text)
        return model, text.decode("utf-8", "replace")
    net = model.parsed.copy()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        if len(net):
            rng.choice(DAMAGES)(rng, net, rng.choice(models).parsed)
    return model, prototxt.format(net)


def _damage_text(rng: random.Random, text: bytearray) -> None:
    at = rng.randrange(len(text) + 1)
    stop = at + rng.choice([0, 0, 1, 1, 2, 20])
    text[at:stop] = rng.choice([b"", b"{", b"}", b"<", b'"', b"[", b":", b"-", b"0", b"\\", b"#", rng.randbytes(1)])


def _all(message: Message) -> Iterator[tuple[Message, str, int]]:
    """Every value in the message and in those within: its message, field and place."""
    for name in message.names():
        for place, value in enumerate(message.all(name)):
            yield message, name, place
            if isinstance(value, Message):
                yield from _all(value)


def value(rng: random.Random, net: Message, other: Message) -> None:
    """Another value where one was, of its kind or of any."""
    message, name, place = rng.choice(list(_all(net)))
    old = message.all(name)[place]
    message.all(name)[place] = _like(rng, old) if rng.random() < 0.8 else rng.choice(ODD)


def drop(rng: random.Random, net: Message, other: Message) -> None:
    message, name, place = rng.choice(list(_all(net)))
    values = message.all(name)
    message.set(name, *values[:place], *values[place + 1 :])


def repeat(rng: random.Random, net: Message, other: Message) -> None:
    message, name, place = rng.choice(list(_all(net)))
    old = message.all(name)[place]
    for _ in range(rng.choice([1, 1, 2, 50])):
        message.add(name, old.copy() if isinstance(old, Message) else old)


def rewire(rng: random.Random, net: Message, other: Message) -> None:
    """A bottom or top from somewhere else in the net."""
    ends = [(layer, name) for layer in _layers(net) for name in ("bottom", "top")]
    names = [end for layer, name in ends for end in layer.all(name)] or [""]
    if ends:
        layer, name = rng.choice(ends)
        rng.choice([layer.add, layer.set])(name, rng.choice(names))


def retype(rng: random.Random, net: Message, other: Message) -> None:
    """A layer of another type, with that type's parameters beside its own."""
    donors, layers = _layers(other), _layers(net)
    if donors and layers:
        layer, donor = rng.choice(layers), rng.choice(donors)
        for name in donor.names():
            if name not in ("name", "bottom", "top"):
                layer.set(name, *donor.copy().all(name))


def graft(rng: random.Random, net: Message, other: Message) -> None:
    """A layer of another net, somewhere, on some blob."""
    donors, layers = _layers(other), _layers(net)
    if donors and layers:
        new = rng.choice(donors).copy()
        tops = [top for layer in layers for top in layer.all("top")]
        if tops and rng.random() < 0.8:
            new.set("bottom", *(rng.choice(tops) for _ in new.all("bottom")))
        key = "layer" if "layer" in net else "layers"
        net.all(key).insert(rng.randint(0, len(layers)), new)


def _layers(net: Message) -> list[Message]:
    return [*net.messages("layer"), *net.messages("layers")]


def _like(rng: random.Random, old: Value) -> Value:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice([old + 1, old - 1, -old, old * 2, *NUMBERS])
    if isinstance(old, float):
        return rng.choice([-old, old * 1e30, *FLOATS])
    if isinstance(old, Message):
        return Message()
    return rng.choice(TEXTS)


NUMBERS = (0, 1, 2, 3, 5, -1, -2, 100, 1000, 65536, 10**9, 2**31 - 1, 2**31, 2**32, 2**63, -(2**31), -(2**63), 10**30)
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"), 1e300)
TEXTS: tuple[Value, ...] = (
    "",
    "data",
    "x",
    "a\nb",
    "\x00",
    "\ud7ff",
    "../../x",
    "a" * 1000,
    Symbol("MAX"),
    Symbol("NO"),
)
ODD: tuple[Value, ...] = (*NUMBERS, *FLOATS, *TEXTS, True, False, Message(), Message(dim=[1, -1]), Message(x=Message()))
DAMAGES = (value, value, value, value, drop, repeat, rewire, retype, graft)


if __name__ == "__main__":
    sys.exit(main())
