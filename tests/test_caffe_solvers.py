"""Recipes at random, against the real Caffe's solvers."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.finetuning import blas
from tests.conftest import FIXTURES, TRAINING, need
from tests.finetuning import call, losses

STEPS = 12
FEW = 4
"""Where a layer is off by one place, more steps would measure ties: a value that just misses a maximum, or zero."""
CHOICES = {
    "SGD": ("base_lr: 0.1", "base_lr: 0.02 momentum: 0.9", "base_lr: 0.05 momentum: 0.5"),
    "Nesterov": ("base_lr: 0.02 momentum: 0.9", "base_lr: 0.05 momentum: 0.5"),
    "AdaGrad": ("base_lr: 0.003 delta: 1e-4", "base_lr: 0.001 delta: 1e-6"),
    "RMSProp": ("base_lr: 0.0005 rms_decay: 0.9 delta: 1e-4", "base_lr: 0.001 rms_decay: 0.98 delta: 1e-4"),
    "AdaDelta": ("base_lr: 1 momentum: 0.95 delta: 1e-4", "base_lr: 0.5 momentum: 0.9 delta: 1e-6"),
    "Adam": ("base_lr: 0.001 momentum: 0.9", "base_lr: 0.001 momentum: 0.8 momentum2: 0.9 delta: 1e-4"),
}
OTHERS = (
    ("", "weight_decay: 0.01", 'weight_decay: 0.001 regularization_type: "L1"'),
    ("", "clip_gradients: 1", "clip_gradients: 0.05"),
    ("", "iter_size: 2", "iter_size: 3"),
    (
        'lr_policy: "fixed"',
        'lr_policy: "step" gamma: 0.5 stepsize: 2',
        'lr_policy: "exp" gamma: 0.9',
        'lr_policy: "inv" gamma: 0.1 power: 0.75',
        'lr_policy: "multistep" gamma: 0.3 stepvalue: 1 stepvalue: 3',
        'lr_policy: "poly" power: 1.5',
        'lr_policy: "sigmoid" gamma: 0.4 stepsize: 2',
    ),
)
LAYERS = (
    ("pool: MAX", ("pool: MAX", "pool: AVE")),
    ('type: "ReLU"', ('type: "ReLU"', 'type: "Sigmoid"', 'type: "ELU"')),
    ("local_size: 5", ("local_size: 5", "local_size: 3")),
    (
        'type: "SoftmaxWithLoss"',
        (
            'type: "SoftmaxWithLoss"',
            'type: "SoftmaxWithLoss" loss_weight: 0.5',
            'type: "SoftmaxWithLoss" loss_param { ignore_label: 2 }',
            'type: "SoftmaxWithLoss" loss_param { normalization: BATCH_SIZE }',
            'type: "HingeLoss"',
            'type: "HingeLoss" hinge_loss_param { norm: L2 }',
        ),
    ),
    ("param { lr_mult: 2 }", ("param { lr_mult: 2 }", "param { lr_mult: 2 decay_mult: 0 }", "param { lr_mult: 0 }")),
)


INEXACT = (
    ('type: "ReLU"', ('type: "TanH"', 'type: "PReLU"')),
    ("local_size: 5", ("local_size: 5", "local_size: 3 norm_region: WITHIN_CHANNEL")),
)
"""Choices of layers that compute what Caffe does, but not to the bit."""


def write(folder: Path, kind: str, rng: random.Random, exact: bool) -> None:
    """A recipe of this type, for the AlexNet in miniature of another recipe."""
    folder.mkdir()
    steps = STEPS if exact else FEW
    others = " ".join(map(rng.choice, OTHERS))
    text = f'type: "{kind}" {rng.choice(CHOICES[kind])} {others} max_iter: {steps} random_seed: {rng.randrange(1000)}'
    (folder / "solver.prototxt").write_text(f'net: "train.prototxt"\n{text}\n')
    net = (TRAINING / "adam" / "train.prototxt").read_text()
    for usual, choices in LAYERS if exact else (*INEXACT, *LAYERS):
        net = net.replace(usual, rng.choice(choices))
    (folder / "train.prototxt").write_text(net)


RECORD = f"""
import sys
sys.path.insert(0, {str(FIXTURES)!r})
import make_training
import numpy as np
from pathlib import Path
with np.load({str(TRAINING / "batches.npz")!r}) as archive:
    x, y = np.float32(archive["x"]) / 256, archive["y"]
for folder in sys.argv[1:]:
    make_training.record(Path(folder), list(zip(x, y)))
"""


@pytest.mark.caffe
@pytest.mark.slow
@pytest.mark.parametrize("kind", CHOICES)
def test_recipes_at_random_have_caffes_bits(kind: str, tmp_path: Path) -> None:
    if not blas.has_kernels():
        pytest.skip("this processor cannot run OpenBLAS's kernels for Haswell")
    for folder in replayed(kind, 5, tmp_path, exact=True):
        recipe = (folder / "solver.prototxt").read_text()
        end = bridge.load(folder / "end.caffemodel")
        for layer in bridge.load(folder / "run" / "model.caffemodel"):
            for role, values in layer.blobs.items():
                np.testing.assert_array_equal(values, end[layer.name].blobs[role], err_msg=f"{layer.name}: {recipe}")


@pytest.mark.caffe
@pytest.mark.slow
@pytest.mark.parametrize("kind", CHOICES)
def test_recipes_at_random_mean_what_they_mean_in_caffe(kind: str, tmp_path: Path) -> None:
    for folder in replayed(kind, 2, tmp_path, exact=False):
        recipe = (folder / "solver.prototxt").read_text()
        start, end = bridge.load(folder / "start.caffemodel"), bridge.load(folder / "end.caffemodel")
        off, size = 0, 0
        for layer in bridge.load(folder / "run" / "model.caffemodel"):
            for role, values in layer.blobs.items():
                before, theirs = start[layer.name].blobs[role], end[layer.name].blobs[role]
                bound = 1e-3 * np.abs(theirs - before).max() + 1e-7
                off, size = off + int((np.abs(values - theirs) > bound).sum()), size + values.size
        assert off <= size / 100, recipe  # a tie moves a few, another rule moves all


def replayed(kind: str, count: int, home: Path, exact: bool) -> list[Path]:
    """Folders of recipes that the real Caffe ran and we replayed, with losses that agree."""
    need("chainer")
    rng = random.Random(kind)
    folders = [home / str(number) for number in range(count)]
    for folder in folders:
        write(folder, kind, rng, exact)
    python = shlex.split(os.environ["BRIDGE_PYCAFFE_PYTHON"])
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "OPENBLAS_"))}
    subprocess.run([*python, "-c", RECORD, *map(str, folders)], check=True, capture_output=True, env=own)
    for folder in folders:
        done = call(
            "finetune", folder / "train.prototxt", folder / "start.caffemodel", "--solver", folder / "solver.prototxt",
            "--data", TRAINING / "batches.npz", "--scale", "0.00390625", "-o", folder / "run", env=own,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with np.load(folder / "loss.npz") as archive:
            np.testing.assert_allclose(losses(folder / "run"), archive["loss"], rtol=0, atol=1e-5)
    return folders
