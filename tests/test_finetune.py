"""The runner's training: Chainer's optimizers, caching, freezing, heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import BridgeError, UsageError
from tests.conftest import FASHION, need
from tests.finetuning import MODEL, config, log_of, losses, run, small_npz, stopped, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


# ---- optimizers -----------------------------------------------------------------------------


CHAINERS = [
    "MomentumSGD", "CorrectedMomentumSGD", "NesterovAG", "chainer.SGD", "chainer.Adam", "AdamW", "AMSGrad",
    "AdaBound", "AMSBound", "chainer.AdaGrad", "chainer.AdaDelta", "RMSprop", "RMSpropGraves", "SMORMS3", "MSVAG",
]  # fmt: skip


@pytest.mark.parametrize("name", CHAINERS)
def test_chainers_optimizers_train_and_resume_in_the_same_bits(name: str, tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    recipe = Recipe(type=name, base_lr=1e-3, momentum=0.9, weight_decay=1e-3, seed=3)
    settings = {"recipe": recipe, "snapshot_every": 3, "validation_share": 0.0}
    whole = trained(config(tmp_path, output=str(tmp_path / "whole"), **settings))
    stopped(config(tmp_path, output=str(tmp_path / "halves"), **settings), 6)
    second = trained(config(tmp_path, output=str(tmp_path / "halves"), resume=True, **settings))
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    mine, theirs = whole.trained.copies(), second.trained.copies()
    assert all(mine[key].tobytes() == theirs[key].tobytes() for key in mine)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


def test_there_is_no_such_optimizer(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    with pytest.raises(UsageError, match="no optimizer 'Adamm'"):
        trained(config(tmp_path, recipe=Recipe(type="Adamm")))


def _step(tmp_path: Path, name: str, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the head after one step, less what they were."""
    recipe = _replaced(changes.pop("recipe"), max_iter=1)
    made = config(tmp_path, output=str(tmp_path / name), recipe=recipe, validation_share=0.0, **changes)
    from bridge.finetuning.run import begin

    started = begin(made)
    head = started.chain.child("fc8")
    before = head.W.array.copy(), head.b.array.copy()
    started.run()
    return head.W.array - before[0], head.b.array - before[1]


@pytest.mark.parametrize("kind", ["SGD", "MomentumSGD"])
def test_rates_and_decays_are_each_layers_own(kind: str, tmp_path: Path) -> None:
    """The prototxt's lr_mult, 1 and 2, and ``--lr-mult`` on top of it; with a rate of its own the head moves faster."""
    from bridge.finetuning import Recipe

    recipe = Recipe(type=kind, base_lr=1e-3, seed=1)
    weight, bias = _step(tmp_path, "once", recipe=recipe)
    more, more_bias = _step(tmp_path, "more", recipe=recipe, lr_mult={"fc8": 3.0})
    np.testing.assert_allclose(more, 3 * weight, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(more_bias, 3 * bias, rtol=1e-3, atol=1e-7)
    still, _ = _step(tmp_path, "still", recipe=recipe, lr_mult={"fc8": 0.0})
    assert not still.any()


@pytest.mark.parametrize("kind", ["SGD", "MomentumSGD"])
def test_gradients_are_clipped_and_summed(kind: str, tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    free, _ = _step(tmp_path, "free", recipe=Recipe(type=kind, base_lr=1.0, seed=1), freeze=("conv*", "fc6"))
    held, _ = _step(
        tmp_path, "held", recipe=Recipe(type=kind, base_lr=1.0, clip_gradients=1e-3, seed=1), freeze=("conv*", "fc6")
    )
    assert np.linalg.norm(held) <= 1e-3 < np.linalg.norm(free)
    assert np.corrcoef(held.ravel(), free.ravel())[0, 1] > 0.99


def test_batches_that_make_one_update_make_one_large_batch(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    files, recipe = _without_dropout(tmp_path), Recipe(base_lr=0.1, seed=1)
    for kind in ("SGD", "MomentumSGD"):
        one, _ = _step(tmp_path, f"{kind} one", files=files, recipe=_replaced(recipe, type=kind), batch_size=32)
        two, _ = _step(
            tmp_path, f"{kind} two", files=files, recipe=_replaced(recipe, type=kind, iter_size=2), batch_size=16
        )
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-7)


def _replaced(recipe: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(recipe, **changes)


def _without_dropout(tmp_path: Path) -> tuple[str, str]:
    text = Path(MODEL[0]).read_text()
    kept = [line for line in text.splitlines() if "Dropout" not in line]
    (tmp_path / "plain.prototxt").write_text("\n".join(kept))
    return str(tmp_path / "plain.prototxt"), MODEL[1]


def test_label_smoothing_lifts_the_loss_of_a_sure_net(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    plain = trained(config(tmp_path, output=str(tmp_path / "plain")))
    smooth = trained(config(tmp_path, output=str(tmp_path / "smooth"), recipe=Recipe(seed=7, label_smoothing=0.3)))
    assert smooth.plan.objective.smoothing == 0.3
    assert plain.evaluate(plain.inputs.validation).loss < smooth.evaluate(smooth.inputs.validation).loss


# ---- caching and freezing -------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["chainer", "onnxruntime"])
def test_the_loss_curve_is_the_same_with_and_without_a_cache(engine: str, tmp_path: Path) -> None:
    need(*(["onnxruntime"] if engine == "onnxruntime" else []))
    for name, cache in (("with", True), ("without", False)):
        made = trained(config(tmp_path, output=str(tmp_path / name), cache=cache, trunk_engine=engine))
        assert (made.inputs.train.cache is not None) == cache
    assert log_of(tmp_path / "with") == log_of(tmp_path / "without")


def test_a_cache_on_disk_is_reused_and_changes_nothing(tmp_path: Path) -> None:
    shared = {"cache_memory": 0, "cache_dir": str(tmp_path / "cache"), "trunk_engine": "chainer"}
    trained(config(tmp_path, output=str(tmp_path / "memory"), trunk_engine="chainer"))
    trained(config(tmp_path, output=str(tmp_path / "first"), **shared))
    files = sorted((tmp_path / "cache").iterdir())
    notes: list[str] = []
    run(config(tmp_path, output=str(tmp_path / "second"), **shared), notes)
    assert sum(": reused, in" in note for note in notes) == 2
    assert sorted((tmp_path / "cache").iterdir()) == files
    assert log_of(tmp_path / "memory") == log_of(tmp_path / "first") == log_of(tmp_path / "second")


@pytest.mark.parametrize(
    "change", [{"scale": 1 / 128}, {"freeze": ("conv[12]",)}, {"data": "other"}, {"validation_share": 0.25}]
)
def test_another_trunk_or_other_data_have_another_cache(change: dict[str, Any], tmp_path: Path) -> None:
    shared = {"cache_dir": str(tmp_path / "cache"), "trunk_engine": "chainer", "epochs": 1}
    trained(config(tmp_path, output=str(tmp_path / "first"), **shared))
    if change.get("data"):
        change = {"data": str(small_npz(tmp_path / "other.npz", 150))}
    notes: list[str] = []
    run(config(tmp_path, output=str(tmp_path / "second"), **{**shared, **change}), notes)
    assert not any(": reused, in" in note for note in notes)


def test_a_damaged_cache_is_computed_again(tmp_path: Path) -> None:
    shared = {"cache_dir": str(tmp_path / "cache"), "trunk_engine": "chainer"}
    trained(config(tmp_path, output=str(tmp_path / "first"), **shared))
    for path in (tmp_path / "cache").glob("*.rows"):
        path.write_bytes(path.read_bytes()[:-8])
    trained(config(tmp_path, output=str(tmp_path / "second"), **shared))
    assert log_of(tmp_path / "first") == log_of(tmp_path / "second")


def test_augmented_images_are_cached_in_k_draws_and_the_log_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    made = trained(config(tmp_path, mirror=True, augment_cache=3), notes)
    assert made.inputs.train.draws == 3
    assert len(next(iter(made.inputs.train.cache._arrays.values()))) == 3 * len(made.plan.train)
    assert any("3 draws each" in note for note in notes)
    notes.clear()
    off = trained(config(tmp_path, mirror=True, output=str(tmp_path / "off")), notes)
    assert off.inputs.train.cache is None
    assert off.inputs.validation.cache is not None
    assert any("--augment-cache" in note for note in notes)


def test_frozen_layers_keep_their_bits_and_others_move(tmp_path: Path) -> None:
    made = run(config(tmp_path))
    before = bridge.load(*MODEL)
    after = bridge.load(tmp_path / "run" / "model.caffemodel")
    for name in ("conv1", "conv2", "conv3"):
        assert all(before[name].blobs[r].tobytes() == after[name].blobs[r].tobytes() for r in before[name].blobs)
    assert before["fc6"].weight.tobytes() != after["fc6"].weight.tobytes()
    assert after["fc8"].weight.shape == (4, 64)
    assert made.plan.stages[0].cut is not None


def test_layers_thaw_at_their_epoch(tmp_path: Path) -> None:
    run(config(tmp_path, unfreeze_at=1, last=True, output=str(tmp_path / "thawed")))
    run(config(tmp_path, output=str(tmp_path / "frozen")))
    thawed, frozen = log_of(tmp_path / "thawed"), log_of(tmp_path / "frozen")
    first = [record for record in frozen if record["epoch"] == 0]
    assert thawed[: len(first)] == first
    before, after = bridge.load(*MODEL), bridge.load(tmp_path / "thawed" / "model.caffemodel")
    assert before["conv1"].weight.tobytes() != after["conv1"].weight.tobytes()


def test_random_layers_below_frozen_ones_are_named(tmp_path: Path) -> None:
    text = Path(MODEL[0]).read_text().replace('bottom: "pool2" top: "conv3"', 'bottom: "drop2" top: "conv3"')
    drop = 'layer { name: "drop2" type: "Dropout" bottom: "pool2" top: "drop2" }\nlayer { name: "conv3"'
    (tmp_path / "net.prototxt").write_text(text.replace('layer { name: "conv3"', drop))
    notes: list[str] = []
    made = run(config(tmp_path, files=(str(tmp_path / "net.prototxt"), MODEL[1])), notes)
    assert made.plan.stages[0].cut.index == [layer.name for layer in made.net].index("drop2")
    assert any("'conv3' are computed in every step, for 'drop2'" in note for note in notes)


# ---- heads ----------------------------------------------------------------------------------


def test_several_heads_and_a_new_name(tmp_path: Path) -> None:
    made = run(config(tmp_path, heads=("fc6=48", "fc8=fc8_clothes:4"), epochs=1))
    after = bridge.load(tmp_path / "run" / "model.caffemodel")
    assert after["fc6"].weight.shape == (48, 288)
    assert after["fc8_clothes"].weight.shape == (4, 48)
    assert "fc8" not in after
    assert any("fc6, fc8_clothes" in note for note in made.notes)


def test_a_layer_that_the_weights_file_lacks_is_new_as_in_caffe(tmp_path: Path) -> None:
    """A layer renamed in the prototxt is filled anew, and trained."""
    text = (
        Path(MODEL[0]).read_text().replace('name: "fc8"', 'name: "fc8_new"').replace("num_output: 10", "num_output: 4")
    )
    (tmp_path / "net.prototxt").write_text(text)
    made = trained(config(tmp_path, files=(str(tmp_path / "net.prototxt"), MODEL[1]), heads=()))
    assert any("fc8_new" in note for note in made.plan.notes)


def test_the_best_epoch_is_the_model_and_the_last_one_can_be(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    settings = {"epochs": 8, "recipe": Recipe(base_lr=0.3, momentum=0.9, seed=2)}
    made = run(config(tmp_path, **settings))
    log = [record for record in log_of(tmp_path / "run") if "validation_loss" in record]
    best = max(log, key=lambda record: (record["validation_accuracy"], -record["validation_loss"]))
    assert made.outcome.best_epoch == best["epoch"]
    assert best is not log[-1]
    assert made.evaluation.loss == pytest.approx(best["validation_loss"], rel=1e-6)
    model = bridge.load(tmp_path / "run" / "model.caffemodel")["fc8"].weight.tobytes()
    assert not (tmp_path / "run" / "best.caffemodel").exists()
    again = run(config(tmp_path, **settings, last=True, resume=True))
    assert again.evaluation.loss == pytest.approx(log[-1]["validation_loss"], rel=1e-6)
    assert bridge.load(tmp_path / "run" / "best.caffemodel")["fc8"].weight.tobytes() == model
    assert bridge.load(tmp_path / "run" / "model.caffemodel")["fc8"].weight.tobytes() != model


def test_ties_go_to_the_lower_loss_and_then_to_the_earlier_epoch() -> None:
    from bridge.finetuning.snapshot import State

    state = State(best=0.5, best_epoch=1, best_accuracy=0.9)
    assert state.is_better(0.7, 0.95)
    assert state.is_better(0.4, 0.9)
    assert not state.is_better(0.5, 0.9)
    assert not state.is_better(0.1, 0.8)
    assert not state.is_better(float("nan"), 1.0)
    assert not State().is_better(float("nan"), None)


def test_a_run_stops_when_it_does_not_get_better(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    made = trained(config(tmp_path, epochs=50, patience=2, recipe=Recipe(base_lr=0.3, momentum=0.9, seed=2)))
    assert made.at.state.stopped
    assert log_of(tmp_path / "run")[-1]["epoch"] == made.at.state.best_epoch + 2


def test_float16_keeps_originals_and_frozen_bits(tmp_path: Path) -> None:
    """On a GPU in earnest; on the CPU slowly, and only from Python."""
    plain = config(tmp_path, output=str(tmp_path / "plain"), validation_share=0.0)
    half = config(tmp_path, output=str(tmp_path / "half"), validation_share=0.0, half=True)
    run(plain)
    with np.errstate(over="ignore"):  # the lowest float32, with which pooling begins on the CPU, is -inf
        made = run(half)
    assert all(param.dtype == np.float16 for param in made.chain.params())
    np.testing.assert_allclose(losses(tmp_path / "half"), losses(tmp_path / "plain"), atol=0.05)
    before, after = bridge.load(*MODEL), bridge.load(tmp_path / "half" / "model.caffemodel")
    assert before["conv1"].weight.tobytes() == after["conv1"].weight.tobytes()
    rounded = after["fc6"].weight.astype(np.float16).astype(np.float32)
    assert rounded.tobytes() != after["fc6"].weight.tobytes()


def test_a_regression_has_no_accuracy(tmp_path: Path) -> None:
    text = Path(MODEL[0]).read_text().partition('layer { name: "fc8"')[0]
    text += (
        'layer { name: "number" type: "InnerProduct" bottom: "fc6" top: "number" '
        'inner_product_param { num_output: 1 weight_filler { type: "xavier" } } }\n'
        'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 10 } } }\n'
        'layer { name: "loss" type: "EuclideanLoss" bottom: "number" bottom: "label" top: "loss" }\n'
    )
    (tmp_path / "net.prototxt").write_text(text)
    with np.load(FASHION / "fashion_mini.npz") as data:
        x = data["x_train"][:96]
    np.savez(tmp_path / "numbers.npz", x=x, y=x.mean(axis=(1, 2)) / 255)
    files = str(tmp_path / "net.prototxt"), MODEL[1]
    made = run(config(tmp_path, files=files, heads=(), data=str(tmp_path / "numbers.npz"), epochs=4))
    assert "accuracy" not in log_of(tmp_path / "run")[0]
    every = losses(tmp_path / "run")
    assert np.mean(every[-3:]) < np.mean(every[:3])  # dropout makes single steps noisy
    assert made.evaluation.accuracy is None
    assert not (tmp_path / "run" / "labels.txt").exists()


def test_a_net_with_two_inputs_of_images_is_refused(tmp_path: Path) -> None:
    two = 'layer { name: "more" type: "Input" top: "more" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 2 } } }\n'
    (tmp_path / "net.prototxt").write_text(two + Path(MODEL[0]).read_text())
    with pytest.raises(BridgeError, match="more, data"):
        trained(config(tmp_path, files=(str(tmp_path / "net.prototxt"), MODEL[1])))


@pytest.mark.slow
def test_what_the_model_knows_saves_half_of_the_epochs(tmp_path: Path) -> None:
    """On digits, the tuned model is right in nine of ten after at most half of the epochs that scratch takes."""
    from bridge.finetuning import Recipe

    need("sklearn")
    settings: dict[str, Any] = {
        "data": "bridge.cli.demonstration:digits",
        "heads": ("fc8=10",),
        "freeze": (),
        "epochs": 10,
        "batch_size": 64,
        "recipe": Recipe(momentum=0.9, weight_decay=5e-4, seed=1),
    }
    for name, files in (("tuned", MODEL), ("scratch", MODEL[:1])):
        trained(config(tmp_path, output=str(tmp_path / name), files=files, **settings))
    tuned, scratch = (
        [record["validation_accuracy"] for record in log_of(tmp_path / name) if "validation_accuracy" in record]
        for name in ("tuned", "scratch")
    )
    assert len(tuned) == len(scratch) == 10
    epochs = [1 + next(i for i, share in enumerate(shares) if share >= 0.9) for shares in (tuned, scratch)]
    assert 2 * epochs[0] <= epochs[1], (tuned, scratch)
    assert all(mine > other for mine, other in zip(tuned[:5], scratch, strict=False)), (tuned, scratch)
