"""False alarms of ``bridge verify``: random nets and layers, computed by two engines that are both right.

    python benchmarks/random_nets.py [--nets 100000] [--seconds 3600] [--seed 0]

Two kinds of examples take turns: whole nets of several layers, and single layers of every type; their inputs have
five scales. ONNX Runtime and Chainer compute each, and every top is compared with its bound. No difference may be
found.
Prints how many were compared, each false alarm with its prototxt, and the largest share of a bound that was used.
Exits with 1 after a false alarm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import tests.strategies  # noqa: E402, F401  registers the cases of all layer types
from bridge.errors import BridgeError  # noqa: E402
from bridge.schema import Net  # noqa: E402
from bridge.testing.cases import CASES  # noqa: E402
from bridge.verification.outputs import Comparison, engine_side  # noqa: E402
from bridge.verification.results import DIFFERENT, TopResult  # noqa: E402
from bridge.verification.segments import Runner  # noqa: E402
from bridge.verification.tolerance import Tolerances  # noqa: E402
from tests.nets import random_inputs  # noqa: E402
from tests.strategies.nets import whole_nets  # noqa: E402

SCALES = (1.0, 1e-3, 30.0, 1.0, 1e3)
_ENGINES: dict[str, dict[str, Any]] = {"onnxruntime": {"threads": 1}, "chainer": {}}
"""Making a session's threads takes longer than running a net of this size."""
_BATCH = 200
"""Examples that are drawn at once, so that the clock is looked at in between."""


def compared(net: Net, inputs: dict[str, np.ndarray], number: int) -> list[TopResult]:
    """All tops of the net, ONNX Runtime against Chainer; none where one of them lacks a layer, or no layer computes."""
    if any(name not in inputs for name in net.inputs):
        return []
    try:
        sides = [engine_side(name, net, inputs, options) for name, options in _ENGINES.items()]
    except BridgeError:
        return []
    runner = Runner(net, "onnxruntime", _ENGINES["onnxruntime"])
    with np.errstate(all="ignore"):
        return list(Comparison(net, runner, *sides, given=Tolerances(), isolate=False, seed=number).run().tops)


def inputs_of(example: Any, net: Net, scale: float) -> dict[str, np.ndarray]:
    """Random inputs: what a layer takes as places and flags stays, numbers are scaled."""
    if not hasattr(example, "data"):
        return {name: np.float32(scale) * array for name, array in random_inputs(net, example.seed).items()}
    fixed = {f"in{place}" for place in example.data}
    arrays = example.inputs()
    return {name: array if name in fixed else np.float32(scale) * array for name, array in arrays.items()}


class Count:
    """What was found so far."""

    def __init__(self) -> None:
        self.nets = self.tops = self.alarms = 0
        self.largest, self.name = 0.0, ""

    def add(self, example: Any) -> None:
        """Compare one example."""
        net = example.net()
        tops = compared(net, inputs_of(example, net, SCALES[self.nets % len(SCALES)]), self.nets)
        self.nets += bool(tops)
        self.tops += len(tops)
        for top in tops:
            if top.status == DIFFERENT:
                self.alarms += 1
                print(
                    f"FALSE ALARM, scale {SCALES[(self.nets - 1) % len(SCALES)]:g}: {top}\n{_text(example)}", flush=True
                )
            elif top.decisive is not None and top.decisive.ratio > self.largest:
                self.largest, self.name = top.decisive.ratio, top.label


def _text(example: Any) -> str:
    return str(getattr(example, "text", "") or getattr(example, "prototxt", ""))


def batches(first: int) -> Iterator[Any]:
    """Functions that draw a batch of examples and give each to a function."""
    kinds = [whole_nets(run=True), st.one_of(*(CASES[name] for name in sorted(CASES)))]
    number = first
    while True:
        yield kinds[number % 2], number
        number += 1


def main(arguments: list[str] | None = None) -> int:
    """Compare until there are enough nets, or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--nets", type=int, default=100_000, help="how many to compare")
    parser.add_argument("--seconds", type=float, default=3600, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    options = parser.parse_args(arguments)
    count, end = Count(), time.monotonic() + options.seconds
    quiet = settings(
        max_examples=_BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for kind, number in batches(options.seed):
        if count.nets >= options.nets or time.monotonic() > end:
            break
        quiet(seed(number)(given(kind)(count.add)))()
    print(f"{count.nets} nets, {count.tops} tops compared, {count.alarms} false alarms", end="; ")
    print(f"at most {100 * count.largest:.3g} % of a bound was used ({count.name})")
    return 1 if count.alarms else 0


if __name__ == "__main__":
    sys.exit(main())
