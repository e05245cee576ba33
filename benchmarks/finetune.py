"""Fine-tuning, four ways in one run: the article's, frozen, frozen with a cache, and the real Caffe's.

The fashion model of the fixtures, a new head, all other layers frozen, batch 64, ten epochs over 900 images:

a  the article's way: a chain of Chainer's own links, every layer computed and back-propagated, a hook
   that keeps the optimizer from what is frozen
b  the runner without a cache: frozen layers computed in each step, without gradients
c  the runner with its cache: frozen layers computed once per image
d  the real Caffe's solver, lr_mult 0 in the frozen layers (BRIDGE_PYCAFFE_PYTHON names its interpreter)

All four see as many images in as many steps. Times are wall clock of training, after files are read, the net
is built and the engine of the trunk is chosen; those of c hold the filling of the cache. c and d, which are
compared epoch by epoch, run in turn, several times: the one with the middle time per later epoch counts. Then
the runner's overhead: the runner against a bare Chainer loop that does the same (the same features, net and batches,
momentum and weight decay, the loss and the accuracy of each step, everything saved at the end), in processor
seconds, alternating. With --large, an AlexNet at 224 x 224 with random weights and pictures. --json FILE
writes all of it.

On a machine that others use, set OPENBLAS_NUM_THREADS=1: threads that wait for each other tell nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from bridge.chain.functions import chainer  # noqa: E402
from bridge.finetuning import Config, Recipe  # noqa: E402
from bridge.finetuning.batches import Images  # noqa: E402
from bridge.finetuning.data import Loading, load_data  # noqa: E402
from bridge.finetuning.evaluation import evaluate  # noqa: E402
from bridge.finetuning.listener import Listener, silent  # noqa: E402
from bridge.finetuning.loop import Loop  # noqa: E402
from bridge.finetuning.run import begin  # noqa: E402
from bridge.finetuning.sources import Source  # noqa: E402

FASHION = ROOT / "fixtures" / "fashion"
IMAGES, BATCH = 900, 64
FROZEN = ("conv*", "fc6")
DROPOUT = 0.5
F, L = chainer.functions, chainer.links
RECIPE = Recipe(base_lr=0.01, momentum=0.9, weight_decay=5e-4, seed=1)
Way = tuple[list[float], float]
"""Seconds at the end of each epoch, and the accuracy on images that were held out."""


def images(folder: Path, split: str, count: int) -> str:
    """Images of the fixtures as the runner takes them."""
    path = folder / f"{split}.npz"
    with np.load(FASHION / "fashion_mini.npz") as archive:
        np.savez(path, x=archive[f"x_{split}"][:count], y=archive[f"y_{split}"][:count].astype(np.int64))
    return str(path)


def config(folder: Path, name: str, epochs: int, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "files": (str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")),
        "data": images(folder, "train", IMAGES),
        "validation_share": 0.0,
        "output": str(folder / name),
        "heads": ("fc8=10",),
        "freeze": FROZEN,
        "epochs": epochs,
        "batch_size": BATCH,
        "scale": 1 / 256,
        "recipe": RECIPE,
    }
    return Config(**{**settings, **changes})


def started(made: Config, on_step: Callable[[dict[str, Any]], None] = silent) -> Loop:
    return begin(made, Listener(on_step))


class Article(chainer.Chain):
    """The fashion model as a Chainer user writes it."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.conv1 = L.Convolution2D(1, 16, 5)
            self.conv2 = L.Convolution2D(16, 32, 5, pad=2, groups=2)
            self.conv3 = L.Convolution2D(32, 32, 3, pad=1)
            self.fc6 = L.Linear(288, 64)
            self.fc8 = L.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        h = F.local_response_normalization(F.relu(self.conv1(x)), 5, 1, 1e-4 / 5, 0.75)
        h = F.max_pooling_2d(h, 3, 2)
        h = F.max_pooling_2d(F.relu(self.conv2(h)), 3, 2)
        h = F.max_pooling_2d(F.relu(self.conv3(h)), 3, 2)
        return self.fc8(F.dropout(F.relu(self.fc6(h)), DROPOUT))


class AlexNet(chainer.Chain):
    """AlexNet for 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 96, 11, stride=4)
            self.conv2 = L.Convolution2D(96, 256, 5, pad=2, groups=2)
            self.conv3 = L.Convolution2D(256, 384, 3, pad=1)
            self.conv4 = L.Convolution2D(384, 384, 3, pad=1, groups=2)
            self.conv5 = L.Convolution2D(384, 256, 3, pad=1, groups=2)
            self.fc6 = L.Linear(9216, 4096)
            self.fc7 = L.Linear(4096, 4096)
            self.fc8 = L.Linear(4096, 10)

    def forward(self, x: Any) -> Any:
        h = F.local_response_normalization(F.relu(self.conv1(x)), 5, 1, 1e-4 / 5, 0.75)
        h = F.max_pooling_2d(h, 3, 2)
        h = F.local_response_normalization(F.relu(self.conv2(h)), 5, 1, 1e-4 / 5, 0.75)
        h = F.relu(self.conv3(F.max_pooling_2d(h, 3, 2)))
        h = F.max_pooling_2d(F.relu(self.conv5(F.relu(self.conv4(h)))), 3, 2)
        h = F.dropout(F.relu(self.fc6(h)))
        return self.fc8(F.dropout(F.relu(self.fc7(h))))


def article(made: Config, chain: Any) -> Way:
    """Plain Chainer over the whole net, with the weights that the runner starts from."""
    loop, recipe = started(replaced(made, freeze=(), cache=False)), made.recipe
    bridge.transplant(bridge.from_chain(loop.chain, loop.plan.net), chain)
    optimizer = chainer.optimizers.MomentumSGD(lr=recipe.base_lr, momentum=recipe.momentum).setup(chain)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(recipe.weight_decay))
    for param in (link.b for link in chain.children()):
        param.update_rule.hyperparam.lr = 2 * recipe.base_lr  # as the prototxt's lr_mult has it
    frozen = re.compile("|".join(fnmatch.translate(f"/{pattern}/*") for pattern in made.freeze))

    def stop(of: Any) -> None:
        for path, param in of.target.namedparams():
            param.update_rule.enabled = frozen.match(path) is None

    optimizer.add_hook(stop, "stop")
    loop.enter(loop.plan.stages[0])
    source, batches = loop.inputs.train, loop.plan.batches
    times, start = [], time.perf_counter()
    for iteration in range(loop.plan.iterations):
        loop.seed(iteration)  # the same dropout as in the other ways
        batch = batches[iteration]
        fed = source.get(batch.indices, batch.epoch)
        loss = F.softmax_cross_entropy(chain(fed["data"]), fed["label"].astype(np.int32))
        chain.cleargrads()
        loss.backward()
        optimizer.update()
        float(loss.array)
        if batches.epoch_ends(iteration, 1):
            times.append(time.perf_counter() - start)
    for name, link in chain.namedlinks(skipself=True):
        for param in link._params:
            getattr(loop.chain[name[1:]], param).array[...] = getattr(link, param).array
    return times, accuracy(loop)


def accuracy(loop: Loop) -> float:
    """Of the whole net, on the fixtures' test images."""
    plan, shape = loop.plan, loop.plan.net.inputs["data"] or ()
    if shape[1] != 1:
        return float("nan")
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(images(Path(folder), "test", 500), Loading((shape[1], shape[2], shape[3]), (28, 28)))
    source = Source(Images(data, plan.preprocess, 0, train=False), plan.objective)
    return evaluate(loop.chain, plan.objective, source, plan.batches.size, plan.ranks).accuracy or 0.0


def runner(made: Config) -> Way:
    """The runner."""
    times: list[float] = []

    def step(record: dict[str, Any]) -> None:
        if loop.plan.batches.epoch_ends(record["iteration"], 1):
            times.append(time.perf_counter() - start)

    loop = started(made, step)
    start = time.perf_counter()
    loop.run()
    return times, accuracy(loop)


def bare(made: Config, chainers: bool) -> float:
    """Processor seconds of a bare Chainer loop over the cached features, with a save at the end.

    Args:
        made: What to train.
        chainers: Whether the optimizer is Chainer's own with its hook, or the runner's.
    """
    loop = started(made)
    chain, recipe, plan = loop.chain, made.recipe, loop.plan
    optimizer = loop.updater.optimizer
    loop.enter(plan.stages[0])
    if chainers:
        optimizer = chainer.optimizers.MomentumSGD(lr=recipe.base_lr, momentum=recipe.momentum).setup(chain)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(recipe.weight_decay))
    source = loop.inputs.train
    assert source.cache is not None
    features = source.cache.rows(np.arange(IMAGES))
    labels, label, start = plan.train.y.astype(np.float32), plan.objective.label, source.start
    rng = np.random.default_rng(1)
    log = []
    begun = time.process_time()
    for _ in range(made.epochs):
        order = rng.permutation(IMAGES)
        for first in range(0, IMAGES, BATCH):
            chosen = order[first : first + BATCH]
            fed = {blob: values[chosen] for blob, values in features.items()}
            fed[label] = labels[chosen]
            values = chain.run(fed, start=start)
            loss, right = values["loss"], (values["fc8"].array.argmax(axis=1) == fed[label]).sum()
            chain.cleargrads()
            loss.backward()
            optimizer.update()
            log.append((float(loss.array), int(right) / len(chosen)))
    for name, what in (("chain", chain), ("optimizer", optimizer)):
        chainer.serializers.save_npz(made.folder / f"{name}.npz", what, compression=False)
    return time.process_time() - begun


def whole(made: Config) -> float:
    """Processor seconds of the runner for the same."""
    loop = started(made)
    loop.enter(loop.plan.stages[0])
    object.__setattr__(loop, "enter", lambda stage: None)  # the cache is full
    begun = time.process_time()
    loop.run()
    return time.process_time() - begun


CAFFE = r"""
import os, sys, time
os.environ["GLOG_minloglevel"] = "3"
import numpy as np
import caffe
os.chdir(sys.argv[1])
z = np.load("batches.npz")
solver = caffe.get_solver("solver.prototxt")
solver.net.copy_from(sys.argv[3])
times, start = [], time.time()
for epoch in range(int(sys.argv[2])):
    for x, y in zip(z["x"], z["y"]):
        solver.net.blobs["data"].data[...] = x
        solver.net.blobs["label"].data[...] = y
        solver.step(1)
    times.append(time.time() - start)
print(" ".join(map(str, times)))
"""


def caffe(folder: Path, epochs: int) -> list[Way]:
    """The real Caffe's solver over as many batches of the same images; nothing where there is no Caffe."""
    python = os.environ.get("BRIDGE_PYCAFFE_PYTHON")
    if not python:
        return []
    steps = -(-IMAGES // BATCH)
    with np.load(FASHION / "fashion_mini.npz") as archive:
        rows = np.resize(np.arange(IMAGES), steps * BATCH)
        x = archive["x_train"][rows].reshape(steps, BATCH, 1, 28, 28).astype(np.float32) / 256
        y = archive["y_train"][rows].reshape(steps, BATCH).astype(np.float32)
    np.savez(folder / "batches.npz", x=x, y=y)
    text = (FASHION / "train.prototxt").read_text()
    for layer in ("conv1", "conv2", "conv3", "fc6"):
        head, name, tail = text.partition(f'name: "{layer}"')
        text = head + name + tail.replace("lr_mult: 1", "lr_mult: 0", 1).replace("lr_mult: 2", "lr_mult: 0", 1)
    (folder / "train.prototxt").write_text(text)
    (folder / "solver.prototxt").write_text(
        'net: "train.prototxt" base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 lr_policy: "fixed" '
        'max_iter: 100000 display: 0 snapshot: 0 snapshot_prefix: "s" random_seed: 1 solver_mode: CPU\n'
    )
    weights = str(FASHION / "fashion_alexnet.caffemodel")
    command = [*shlex.split(python), "-c", CAFFE, str(folder), str(epochs), weights]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [([float(part) for part in out.split()], float("nan"))]


def _layer(name: str, kind: str, bottom: str, params: str = "") -> str:
    top = bottom if kind in ("ReLU", "Dropout") else name
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {params} }}\n'


def alexnet(classes: int) -> str:
    """AlexNet for 224 x 224, as text; its weights come from the fillers."""
    filler = 'weight_filler { type: "msra" }'
    text = ['name: "AlexNet"\nlayer { name: "data" type: "Input" top: "data" input_param { shape { ']
    text.append("dim: 16 dim: 3 dim: 224 dim: 224 } } }\n")
    blob = "data"
    convolutions = [(96, 11, 4, 0, 1), (256, 5, 1, 2, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2)]
    for number, (out, size, stride, pad, group) in enumerate(convolutions, 1):
        sizes = f"num_output: {out} kernel_size: {size} stride: {stride} pad: {pad} group: {group} {filler}"
        text.append(_layer(f"conv{number}", "Convolution", blob, f"convolution_param {{ {sizes} }}"))
        text.append(_layer(f"relu{number}", "ReLU", blob := f"conv{number}"))
        if number in (1, 2):
            text.append(_layer(f"norm{number}", "LRN", blob, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"))
            blob = f"norm{number}"
        if number in (1, 2, 5):
            text.append(_layer(f"pool{number}", "Pooling", blob, "pooling_param { kernel_size: 3 stride: 2 }"))
            blob = f"pool{number}"
    for number, out in ((6, 4096), (7, 4096), (8, classes)):
        sizes = f"num_output: {out} {filler}"
        text.append(_layer(f"fc{number}", "InnerProduct", blob, f"inner_product_param {{ {sizes} }}"))
        blob = f"fc{number}"
        if number < 8:
            text += [_layer(f"relu{number}", "ReLU", blob), _layer(f"drop{number}", "Dropout", blob)]
    return "".join([*text, _layer("prob", "Softmax", blob)])


def large(folder: Path) -> dict[str, Way]:
    """AlexNet's convolutions frozen, 64 pictures of noise in batches of 16: the ways a, b and c."""
    (folder / "alexnet.prototxt").write_text(alexnet(10))
    rng = np.random.default_rng(0)
    np.savez(folder / "noise.npz", x=rng.integers(0, 256, (64, 3, 224, 224), np.uint8), y=np.arange(64) % 10)
    changes: dict[str, Any] = {
        "files": (str(folder / "alexnet.prototxt"),),
        "data": str(folder / "noise.npz"),
        "heads": (),
        "batch_size": 16,
        "recipe": Recipe(base_lr=1e-4, momentum=0.9, weight_decay=5e-4, seed=1),
    }
    made = {name: config(folder, f"large-{name}", 3, **changes) for name in "abc"}
    return {
        "a every layer, hook": article(replaced(made["a"], freeze=("conv*",)), AlexNet()),
        "b frozen, no cache": runner(replaced(made["b"], freeze=("conv*",), cache=False)),
        "c frozen, cached": runner(replaced(made["c"], freeze=("conv*",))),
    }


def replaced(made: Config, **changes: Any) -> Config:
    return dataclasses.replace(made, **changes)


def show(title: str, ways: dict[str, Way]) -> dict[str, Any]:
    """Print a table; what is in it, for JSON."""
    base = next(iter(ways.values()))[0]
    cached = ways["c frozen, cached"][0]
    print(f"\n{title}")
    print(f"{'':22}{'all epochs':>12}{'first':>10}{'each later':>12}{'a / this':>10}{'later / c':>11}{'accuracy':>10}")
    result: dict[str, Any] = {}
    for name, (times, accuracy) in ways.items():
        later = _later(times)
        print(
            f"{name:22}{times[-1]:>10.2f} s{times[0]:>8.2f} s{later * 1e3:>9.1f} ms{base[-1] / times[-1]:>10.1f}"
            f"{later / _later(cached):>11.1f}{accuracy:>10.3f}"
        )
        result[name] = {"seconds": times, "accuracy": accuracy}
    return result


def middle(ways: list[Way]) -> Way:
    """That one of several runs whose later epochs took neither long nor short."""
    return sorted(ways, key=lambda way: _later(way[0]))[len(ways) // 2]


def _later(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def overhead(folder: Path, epochs: int, rounds: int) -> dict[str, list[float]]:
    """The runner against the bare loops, alternating."""
    found: dict[str, list[float]] = {"runner": [], "Chainer's optimizer": [], "the runner's own optimizer": []}
    for number in range(rounds):
        found["Chainer's optimizer"].append(bare(config(folder, f"chainers{number}", epochs), True))
        found["the runner's own optimizer"].append(bare(config(folder, f"own{number}", epochs), False))
        found["runner"].append(whole(config(folder, f"whole{number}", epochs)))
    print(f"\nthe runner over a bare loop, {epochs} epochs, {rounds} rounds:")
    for name in list(found)[1:]:
        ratios = [of(found["runner"]) / of(found[name]) - 1 for of in (statistics.median, min)]
        print(f"  with {name:28} {100 * ratios[0]:+6.1f} % by the medians {100 * ratios[1]:+6.1f} % by the least")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9, help="of the overhead's measuring")
    parser.add_argument("--turns", type=int, default=5, help="of c and d")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "version": bridge.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ways = {
            "a every layer, hook": article(config(folder, "a", args.epochs), Article()),
            "b frozen, no cache": runner(config(folder, "b", args.epochs, cache=False)),
        }
        cached, theirs = [], []
        for number in range(args.turns):
            cached.append(runner(config(folder, f"c{number}", args.epochs)))
            theirs += caffe(folder, args.epochs)
        ways["c frozen, cached"] = middle(cached)
        if theirs:
            ways["d the real Caffe"] = middle(theirs)
        else:
            print("the real Caffe was not measured: BRIDGE_PYCAFFE_PYTHON is not set", file=sys.stderr)
        result["fashion"] = show(f"fashion, {IMAGES} images, batch {BATCH}, {args.epochs} epochs", ways)
        result["overhead"] = overhead(folder, 4 * args.epochs, args.rounds)
        if args.large:
            result["alexnet"] = show("AlexNet at 224 x 224, 64 pictures, batch 16, 3 epochs", large(folder))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
