"""Caffe's own recipes: solver.prototxt files, learning-rate policies, update rules and replays."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.errors import FormatError
from bridge.finetuning import blas
from tests.conftest import FASHION, TRAINING, need
from tests.finetuning import MODEL, call, log_of, losses, need_exact, small_npz

RECIPES = sorted(path.parent.name for path in TRAINING.glob("*/solver.prototxt"))


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


EXACT = ("nesterov_iter_size", "rmsprop_clip")
"""Recorded with OpenBLAS's kernels for Haswell and one thread, and of layers that compute as Caffe does to the bit."""


@pytest.mark.parametrize("name", EXACT)
def test_a_replay_has_caffes_bits(name: str, tmp_path: Path) -> None:
    need_exact()
    replay(name, tmp_path / "run")
    end = bridge.load(TRAINING / name / "end.caffemodel")
    for layer in bridge.load(tmp_path / "run" / "model.caffemodel"):
        for role, values in layer.blobs.items():
            np.testing.assert_array_equal(values, end[layer.name].blobs[role], err_msg=f"{layer.name} {role}")


def replay(name: str, output: Path) -> None:
    """Run a recorded recipe by its command."""
    recipe = TRAINING / name
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "OPENBLAS_"))}
    done = call(
        "finetune", recipe / "train.prototxt", recipe / "start.caffemodel", "--solver", recipe / "solver.prototxt",
        "--data", TRAINING / "batches.npz", "--scale", "0.00390625", "-o", output, env=own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_a_solver_prototxt_means_what_it_means_in_caffe(name: str, tmp_path: Path) -> None:
    recipe, output = TRAINING / name, tmp_path / "run"
    replay(name, output)
    with np.load(recipe / "loss.npz") as archive:
        expected = archive["loss"]
    assert [record["iteration"] for record in log_of(output)] == list(range(len(expected)))
    np.testing.assert_allclose(losses(output), expected, rtol=0, atol=1e-5)
    end, made = bridge.load(recipe / "end.caffemodel"), bridge.load(output / "model.caffemodel")
    assert {layer.name for layer in made if layer.blobs} <= {layer.name for layer in end}
    for layer in made:
        for role, values in layer.blobs.items():
            np.testing.assert_allclose(values, end[layer.name].blobs[role], 0, 1e-5, err_msg=layer.name)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ('lr_policy: "fixed"', [1, 1, 1, 1]),
        ('lr_policy: "step" gamma: 0.5 stepsize: 2', [1, 1, 0.5, 0.5]),
        ('lr_policy: "exp" gamma: 0.5', [1, 0.5, 0.25, 0.125]),
        ('lr_policy: "inv" gamma: 1 power: 2', [1, 1 / 4, 1 / 9, 1 / 16]),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 1 stepvalue: 3', [1, 0.1, 0.1, 0.01]),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 1 stepvalue: 1', [1, 0.1, 0.01, 0.01]),
        ('lr_policy: "poly" power: 2 max_iter: 4', [1, 9 / 16, 1 / 4, 1 / 16]),
        ('lr_policy: "sigmoid" gamma: -1 stepsize: 1', [1 / (1 + math.exp(i - 1)) for i in range(4)]),
    ],
)
def test_learning_rate_policies(text: str, rates: list[float]) -> None:
    from bridge.finetuning import read_solver

    recipe = read_solver(prototxt.parse(f"base_lr: 1 {text}"))
    np.testing.assert_allclose([recipe.rate(i) for i in range(4)], rates, rtol=1e-6)


def test_cosine_and_warm_up() -> None:
    from bridge.finetuning import Recipe

    cosine = Recipe(base_lr=2, lr_policy="cosine", max_iter=4)
    np.testing.assert_allclose([cosine.rate(i) for i in range(5)], [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0], atol=1e-12)
    warm = Recipe(base_lr=1, warmup=3)
    np.testing.assert_allclose([warm.rate(i) for i in range(5)], [0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base_lr: 1 lr_policy: "fixed" momentun: 0.9', "momentun"),
        ("base_lr: 1", "no learning-rate policy ''"),
        ('base_lr: 1 lr_policy: "wave"', "wave"),
        ('base_lr: 1 lr_policy: "step" gamma: 0.1', "stepsize"),
        ('base_lr: 1 lr_policy: "multistep" gamma: 0.1', "stepvalue"),
        ('base_lr: 1 lr_policy: "fixed" type: "Adagrad"', "Adagrad"),
        ('base_lr: 1 lr_policy: "fixed" type: "AdaGrad" momentum: 0.9', "AdaGrad has none"),
        ('base_lr: "fast" lr_policy: "fixed"', "base_lr"),
        ('base_lr: 1 lr_policy: "fixed" iter_size: 0', "iter_size"),
    ],
)
def test_a_recipe_that_caffe_would_not_take_is_an_error(text: str, words: str) -> None:
    from bridge.finetuning import read_solver

    with pytest.raises(FormatError, match=words):
        read_solver(prototxt.parse(text))


def test_a_solver_brings_its_own_net(tmp_path: Path) -> None:
    """With weights alone its net is trained: batch size, rates and preprocessing are those of its prototxt."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    text = (FASHION / "train.prototxt").read_text()
    (folder / "train_val.prototxt").write_text(text)
    solver = folder / "solver.prototxt"
    data = small_npz(tmp_path / "data.npz", 100)

    def tune(net: str, *files: object) -> Any:
        solver.write_text(f'net: "{net}" base_lr: 0.001 lr_policy: "fixed" max_iter: 2 snapshot_prefix: "s"')
        output = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        line = ["finetune", *files, MODEL[1], "--solver", solver, "--data", data, "--scale", "0.004", "-o", output]
        return call(*line), output

    for net in ("train_val.prototxt", "models/recipe/train_val.prototxt"):
        done, output = tune(net)
        assert done.returncode == 0, done.stderr
        assert "not read" not in done.stderr
        assert "steps of 64 images" in (output / "report.html").read_text()
    done, output = tune("train_val.prototxt", MODEL[0])
    assert f"the solver's net 'train_val.prototxt' is not read: '{MODEL[0]}' is trained" in done.stderr
    assert "steps of 32 images" in (output / "report.html").read_text()
    (tmp_path / "other.prototxt").write_text(text)
    for outside in ("../other.prototxt", "none.prototxt"):
        done, _ = tune(outside)
        assert done.returncode == 2
        assert f"there is no net '{outside}' in" in done.stderr


def test_what_a_solver_prototxt_leaves_out_has_caffes_defaults() -> None:
    from bridge.finetuning import read_solver

    recipe = read_solver(prototxt.parse('lr_policy: "inv" solver_type: ADAM'))
    assert (recipe.type, recipe.base_lr, recipe.gamma, recipe.power, recipe.momentum) == ("Adam", 0, 0, 0, 0)


def test_a_sequence_of_batches_is_known_by_its_header(tmp_path: Path) -> None:
    """Before NumPy is imported, whose kernels a replay chooses."""
    np.savez(tmp_path / "fixed.npz", x=np.zeros((2, 3, 1, 4, 4)), y=np.zeros((2, 3), int))
    np.savez(tmp_path / "keras.npz", x=np.zeros((6, 1, 4, 4)), y=np.zeros((6, 1), int))
    np.savez(tmp_path / "images.npz", x=np.zeros((6, 1, 4, 4)), y=np.zeros(6, int))
    assert blas.holds_batches(str(tmp_path / "fixed.npz"))
    assert not blas.holds_batches(str(tmp_path / "images.npz"))
    assert not blas.holds_batches(str(tmp_path / "keras.npz"))
    assert not blas.holds_batches("no:module")


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_rule_is_the_same_in_a_replay_and_elsewhere_but_for_rounding(kind: str) -> None:
    from bridge.chain.functions import chainer
    from bridge.finetuning import Recipe
    from bridge.finetuning.rules import CaffeOptimizer

    momentum = 0.0 if kind in ("AdaGrad", "RMSProp") else 0.9
    recipe = Recipe(type=kind, base_lr=0.1, momentum=momentum, weight_decay=0.1, clip_gradients=5, iter_size=2)
    rng = np.random.default_rng(0)
    start, gradients = rng.uniform(2, 3, 40_000), rng.uniform(1, 2, (3, 40_000))  # whose sums cancel nothing
    made = []
    for again in (False, True):
        chain = chainer.Chain()
        with chain.init_scope():
            chain.p = chainer.Parameter(start.astype(np.float32))
        optimizer = CaffeOptimizer(recipe, replay=again).setup(chain)
        for gradient in gradients:
            chain.p.grad = gradient.astype(np.float32)
            optimizer.update()
        made.append(chain.p.array)
    np.testing.assert_allclose(*made, rtol=1e-6)
    assert (made[0] != start.astype(np.float32)).all()
