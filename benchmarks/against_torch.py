"""Training steps of built chains against the same nets in PyTorch; ``chain.py --torch`` runs it.

Each side is a process of its own, and one of them computes at a time, in turns; a figure is the median of its turns.
With one thread it is the processor's time, which stands still while other programs run; with several it is the wall's.
Before that the scores of both sides and the norms of all gradients are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
NETS = ("alexnet", "googlenet", "vgg16", "resnet50", "mobilenet")
SIDES = ("built", "torch")
_CLOSE = 2e-3
"""How far scores and norms of gradients may be apart, as a part of the largest."""


class Side:
    """A process that makes steps of one net."""

    def __init__(self, command: list[str], threads: int) -> None:
        environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}}
        self._process = subprocess.Popen(
            [*command, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} ended with status {self._process.wait()}")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()


def measure(name: str, python: str, threads: int, repeat: int) -> dict[str, Any]:
    """One net's figures: seconds of both sides and their ratio, and the most memory of each, in MiB."""
    commands = {"built": [sys.executable, str(FOLDER / "chain_nets.py"), name]}
    commands["torch"] = [python, str(FOLDER / "torch_nets.py"), name]
    sides = {key: Side(command, threads) for key, command in commands.items()}
    try:
        apart = _apart(*(sides[key].ask("look") for key in SIDES))
        if not apart <= _CLOSE:
            raise SystemExit(f"{name}: the sides' results are {apart:.1e} apart")
        clock = "processor" if threads == 1 else "wall"
        turns = [{key: sides[key].ask("step")[clock] for key in SIDES} for _ in range(repeat)]
        memory = {key: sides[key].ask("memory")["most"] for key in SIDES}
    finally:
        for side in sides.values():
            side.close()
    seconds = {key: statistics.median(turn[key] for turn in turns) for key in SIDES}
    ratio = statistics.median(turn["built"] / turn["torch"] for turn in turns)
    return {
        "seconds": seconds, "ratio": ratio, "memory": memory, "memory_ratio": memory["built"] / memory["torch"],
        "apart": apart, "versions": {key: sides[key].about["version"] for key in SIDES},
    }  # fmt: skip


def _apart(mine: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of scores, and of the sorted norms of gradients, as a part of the largest of them."""
    worst = 0.0
    for key in ("scores", "norms"):
        a, b = (np.sort(found[key]) if key == "norms" else np.array(found[key]) for found in (mine, theirs))
        if a.shape != b.shape:
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    return worst


def compare(python: str, names: list[str], threads: list[int], repeat: int) -> dict[str, Any]:
    """Print the table of all nets; returns the figures by number of threads and net."""
    results: dict[str, Any] = {}
    print("| threads | net | built | PyTorch | ratio | memory | PyTorch | ratio |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for number in threads:
        found = results[str(number)] = {}
        for name in names:
            row = found[name] = measure(name, python, number, repeat)
            mine, theirs = (f"{row['seconds'][key] * 1e3:.0f} ms" for key in SIDES)
            held, held_there = (f"{row['memory'][key]:.0f} MiB" for key in SIDES)
            print(
                f"| {number} | {name} | {mine} | {theirs} | {row['ratio']:.2f} | {held} | {held_there} "
                f"| {row['memory_ratio']:.2f} |",
                flush=True,
            )
    print("\n" + ", ".join(f"{key}: {version}" for key, version in row["versions"].items()))
    return results
