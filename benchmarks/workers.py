"""How training scales over workers: measured for one and two processes here, projected for many on a network.

    python benchmarks/workers.py [--steps 40] [--json workers.json]

Each process has a core, one thread, and the same number of images per step. A step's time is the middle one. The
projection for 8 to 256 workers takes the measured size of the gradients and the measured step of one worker, by the
formula of docs/gpu.md: T(W) = t + 2 (W - 1) / W * G / B + 2 (W - 1) l.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WORKERS = (8, 16, 32, 64, 128, 256)
NETWORKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}
LATENCY = 1e-5
"""Seconds per message, of a switched network within a data centre."""


def projected(step: float, gradients: float, workers: int, network: float, latency: float = LATENCY) -> float:
    """Seconds of a step of so many workers that average their gradients in a ring.

    Args:
        step: Seconds of a step of one worker.
        gradients: Bytes of the gradients.
        workers: Number of workers.
        network: Bytes per second.
        latency: Seconds per message.
    """
    rounds = 2 * (workers - 1)
    return step + rounds / workers * gradients / network + rounds * latency


def table(step: float, gradients: float) -> list[dict[str, Any]]:
    rows = []
    for name, network in NETWORKS.items():
        for workers in WORKERS:
            seconds = projected(step, gradients, workers, network)
            rows.append({"network": name, "workers": workers, "seconds": seconds, "efficiency": step / seconds})
    return rows


def train(folder: Path, images: int, steps: int) -> dict[str, Any]:
    """Train in this process, or with those that mpiexec started; the middle of the steps' times."""
    import numpy as np

    from bridge.finetuning import Config, Listener, Recipe
    from bridge.finetuning.parallel import communicator_for, started
    from bridge.finetuning.run import begin

    fashion = ROOT / "fixtures" / "fashion"
    number, seconds = max(1, started()), []
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ.get("PMI_RANK", "0")) % len(cores)]})
    loop = begin(
        Config(
            files=(str(fashion / "deploy.prototxt"), str(fashion / "fashion_alexnet.caffemodel")),
            data=str(folder / "data.npz"),
            output=str(folder / f"run{number}"),
            batch_size=images * number,
            scale=1 / 256,
            validation_share=0,
            recipe=Recipe(base_lr=0.01, momentum=0.9, max_iter=steps),
            communicator=communicator_for(""),
        ),
        Listener(lambda record: seconds.append(record["seconds"])),
    )
    loop.run()
    size = sum(param.array.nbytes for param in loop.chain.params() if param.grad is not None)
    assert np.isfinite([param.array.sum() for param in loop.chain.params()]).all()
    return {"workers": number, "images": images * number, "seconds": statistics.median(seconds[2:]), "bytes": size}


def data(folder: Path) -> None:
    import numpy as np

    with np.load(ROOT / "fixtures" / "fashion" / "fashion_mini.npz") as found:
        np.savez(folder / "data.npz", x=found["x_train"], y=found["y_train"].astype(np.int64))


def measured(folder: Path, images: int, steps: int) -> list[dict[str, Any]]:
    """One process, then two."""
    own = [sys.executable, str(Path(__file__)), "--worker", str(folder), "--images", str(images), "--steps", str(steps)]
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    found = []
    for command in [own, *([[mpiexec, "-n", "2", *own]] if mpiexec else [])]:
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, env=settings, check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
            found.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
        except (subprocess.SubprocessError, StopIteration) as error:
            found.append({"workers": 1 + len(found), "error": f"{type(error).__name__}: {error}"[:500]})
    return found


def show(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    one = found[0]
    print(f"{'workers':>8} {'images':>7} {'ms/step':>8} {'images/s':>9} {'efficiency':>10}   measured here")
    for row in found:
        if "error" in row:
            print(f"{row['workers']:8} {row['error']}")
            continue
        rate = row["images"] / row["seconds"]
        print(
            f"{row['workers']:8} {row['images']:7} {1e3 * row['seconds']:8.1f} {rate:9.0f} "
            f"{one['seconds'] / row['seconds']:10.0%}"
        )
    print(f"\nprojected, from {one['bytes'] / 1e6:.2f} MB of gradients and {1e3 * one['seconds']:.1f} ms a step")
    for row in rows:
        name, workers = row["network"], row["workers"]
        print(f"{name:>12} {workers:5} workers {1e3 * row['seconds']:9.1f} ms/step {row['efficiency']:6.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="images of each worker in a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = train(options.worker, options.images, options.steps)
        if os.environ.get("PMI_RANK", "0") == "0":
            print(json.dumps(found), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        data(Path(folder))
        found = measured(Path(folder), options.images, options.steps)
    rows = table(found[0]["seconds"], found[0]["bytes"]) if "seconds" in found[0] else []
    if options.json:
        options.json.write_text(json.dumps({"measured": found, "projected": rows}, indent=2))
    if not rows:
        sys.exit(found[0]["error"])
    show(found, rows)


if __name__ == "__main__":
    main()
