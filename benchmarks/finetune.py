"""Fine-tuning, four ways in one run: the article's, frozen, frozen with a cache, and the real Caffe's.

The fashion model of the fixtures, a new head, batch 64, ten epochs over its 1,000 training images:

a  every layer computed and back-propagated, updates of the frozen layers stopped by a hook
b  frozen layers computed without gradient, no cache
c  frozen layers computed once, their outputs cached
d  the real Caffe's own solver, lr_mult 0 in the frozen layers (BRIDGE_PYCAFFE_PYTHON names its interpreter)

Prints a table of seconds and ratios, and the runner's overhead over a bare loop of the same work;
--json FILE writes them. Times are of training alone, after files are read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from bridge.finetune import Config, Recipe  # noqa: E402
from bridge.finetune.run import begin  # noqa: E402

FASHION = ROOT / "fixtures" / "fashion"
FROZEN = ("conv*", "fc6")


def data(folder: Path) -> Path:
    path = folder / "data.npz"
    with np.load(FASHION / "fashion_mini.npz") as archive:
        np.savez(path, x=archive["x_train"], y=archive["y_train"].astype(np.int64))
    return path


def config(folder: Path, name: str, args: argparse.Namespace, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "files": (str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")),
        "data": str(data(folder)),
        "output": str(folder / name),
        "heads": ("fc8=10",),
        "freeze": FROZEN,
        "epochs": args.epochs,
        "batch_size": 64,
        "validation_share": 0.1,
        "scale": 1 / 256,
        "recipe": Recipe(momentum=0.9, weight_decay=5e-4, seed=1),
    }
    return Config(**{**settings, **changes})


def way_a(folder: Path, args: argparse.Namespace) -> tuple[list[float], float]:
    """The article's way, written as a Chainer user would."""
    from bridge.chain.functions import chainer

    run = begin(config(folder, "a", args, freeze=(), cache=False), lambda record: None, lambda note: None)
    loop = run.loop
    chain, optimizer = run.chain, chainer.optimizers.MomentumSGD(lr=0.01, momentum=0.9)
    optimizer.setup(chain)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(5e-4))
    from bridge.chain.freezing import is_frozen

    def stop(opt: Any) -> None:
        for path, param in opt.target.namedparams():
            if not path.startswith("/fc8"):
                param.update_rule.enabled = False

    stop.name = "stop"  # type: ignore[attr-defined]
    optimizer.add_hook(stop)
    assert not any(is_frozen(param) for param in chain.params())
    loop._enter(loop.stages[0])
    epochs, start = [], time.perf_counter()
    for iteration in range(loop.iterations):
        batch = loop.batches[iteration]
        values, _ = loop._forward(loop.train.get(batch.indices, batch.epoch))  # type: ignore[union-attr]
        loss = loop.objective(values)
        chain.cleargrads()
        loss.backward()
        optimizer.update()
        if (iteration + 1) % loop.batches.per_epoch == 0:
            epochs.append(time.perf_counter() - start)
    return epochs, loop.evaluate(loop.validation)[1]  # type: ignore[arg-type]


def way_runner(folder: Path, args: argparse.Namespace, name: str, **changes: Any) -> tuple[list[float], float]:
    epochs: list[float] = []
    marks: list[float] = []

    def step(record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            epochs.append(time.perf_counter() - marks[0])

    run = begin(config(folder, name, args, **changes), step, lambda note: None)
    marks.append(time.perf_counter())
    run.loop.run(False)
    return epochs, run.loop.evaluate(run.loop.validation)[1]  # type: ignore[arg-type]


def bare(folder: Path, args: argparse.Namespace) -> float:
    """Seconds of a bare Chainer loop over the same cached features: the runner's work without the runner."""
    run = begin(config(folder, "bare", args), lambda record: None, lambda note: None)
    loop = run.loop
    loop._enter(loop.stages[0])
    start = time.perf_counter()
    for iteration in range(loop.iterations):
        batch = loop.batches[iteration]
        values, _ = loop._forward(loop.train.get(batch.indices, batch.epoch))  # type: ignore[union-attr]
        loss = loop.objective(values)
        loop.chain.cleargrads()
        loss.backward()
        loop.optimizer.update()
        float(loss.array)
    return time.perf_counter() - start


CAFFE = r"""
import os, sys, time
os.environ["GLOG_minloglevel"] = "3"
import numpy as np
import caffe
folder, epochs = sys.argv[1], int(sys.argv[2])
os.chdir(folder)
z = np.load("batches.npz")
solver = caffe.get_solver("solver.prototxt")
solver.net.copy_from(sys.argv[3])
times, start = [], time.time()
for epoch in range(epochs):
    for x, y in zip(z["x"], z["y"]):
        solver.net.blobs["data"].data[...] = x
        solver.net.blobs["label"].data[...] = y
        solver.step(1)
    times.append(time.time() - start)
print(" ".join(map(str, times)))
"""


def way_d(folder: Path, args: argparse.Namespace) -> tuple[list[float], float] | None:
    python = os.environ.get("BRIDGE_PYCAFFE_PYTHON")
    if not python:
        return None
    with np.load(FASHION / "fashion_mini.npz") as archive:
        x = archive["x_train"][:896].reshape(14, 64, 1, 28, 28).astype(np.float32) / 256
        y = archive["y_train"][:896].reshape(14, 64).astype(np.float32)
    np.savez(folder / "batches.npz", x=x, y=y)
    text = (FASHION / "train.prototxt").read_text()
    for layer in ("conv1", "conv2", "conv3", "fc6"):
        head, _, tail = text.partition(f'name: "{layer}"')
        text = head + f'name: "{layer}"' + tail.replace("lr_mult: 1", "lr_mult: 0", 1).replace("lr_mult: 2", "lr_mult: 0", 1)
    (folder / "train.prototxt").write_text(text)
    (folder / "solver.prototxt").write_text(
        'net: "train.prototxt" base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 lr_policy: "fixed" '
        'max_iter: 100000 display: 0 snapshot: 0 snapshot_prefix: "s" random_seed: 1 solver_mode: CPU\n'
    )
    command = [python, "-c", CAFFE, str(folder), str(args.epochs), str(FASHION / "fashion_alexnet.caffemodel")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(part) for part in out.split()], float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ways = {
            "a every layer, hook": way_a(folder, args),
            "b frozen, no cache": way_runner(folder, args, "b", cache=False),
            "c frozen, cached": way_runner(folder, args, "c"),
        }
        caffe = way_d(folder, args)
        if caffe:
            ways["d the real Caffe"] = caffe
        else:
            print("the real Caffe was not measured: BRIDGE_PYCAFFE_PYTHON is not set", file=sys.stderr)
        plain = bare(folder, args)
        runner = way_runner(folder, args, "again")[0][-1]
    report(ways, plain, runner, args)


def report(ways: dict[str, tuple[list[float], float]], plain: float, runner: float, args: argparse.Namespace) -> None:
    base = ways["a every layer, hook"][0][-1]
    cached = ways["c frozen, cached"][0]
    print(f"{'way':22}{'all epochs':>12}{'later epochs':>14}{'a / this':>10}{'accuracy':>10}")
    result: dict[str, Any] = {"epochs": args.epochs, "version": bridge.__version__}
    for name, (times, accuracy) in ways.items():
        later = (times[-1] - times[0]) / max(1, len(times) - 1)
        print(f"{name:22}{times[-1]:>10.2f} s{later * 1e3:>11.1f} ms{base / times[-1]:>10.1f}{accuracy:>10.3f}")
        result[name] = {"seconds": times, "accuracy": accuracy}
    if "d the real Caffe" in ways:
        theirs = ways["d the real Caffe"][0]
        ratio = ((theirs[-1] - theirs[0]) / (cached[-1] - cached[0])) if len(cached) > 1 else float("nan")
        print(f"from the second epoch on, c is {ratio:.0f} times as fast as the real Caffe")
    print(f"the runner took {runner:.3f} s for what a bare loop took {plain:.3f} s")
    result["runner"] = {"runner": runner, "bare": plain}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
