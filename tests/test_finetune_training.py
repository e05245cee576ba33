"""Parts of a run in a Trainer of one's own: the cached trunk as an iterator, the freeze as an extension."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import UsageError
from tests.conftest import need
from tests.finetuning import MODEL


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


def images(count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).random((count, 1, 28, 28), np.float32)
    return x, (np.arange(count) % 4).astype(np.int32)


def made(*frozen: str) -> tuple[Any, Any]:
    net = bridge.load(*MODEL).with_head("fc8", 4, seed=2).with_outputs("fc8")
    chain = bridge.build_chain(net, seed=1)
    if frozen:
        bridge.freeze(chain, *frozen)
    return net, chain


def trainer_of(model: Any, iterator: Any, epochs: int, out: Path) -> Any:
    from bridge.chain.functions import chainer
    from bridge.finetuning import CaffeOptimizer

    optimizer = CaffeOptimizer(bridge.Recipe(base_lr=0.01, momentum=0.9, weight_decay=5e-4)).setup(model)
    updater = chainer.training.updaters.StandardUpdater(iterator, optimizer)
    return chainer.training.Trainer(updater, (epochs, "epoch"), out=str(out))


def test_training_from_the_cached_trunk_has_the_bits_of_training_without(tmp_path: Path) -> None:
    from bridge.chain.functions import chainer
    from bridge.finetuning import CachedTrunk

    x, labels = images(16)
    (net, cached), (_, whole) = made("conv*"), made("conv*")
    trunk = CachedTrunk(net, cached, "chainer")
    iterator = trunk.iterator(x, labels, 1, shuffle=False)
    every = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(x, labels), 1, shuffle=False)
    for model, batches in ((trunk.head, iterator), (whole, every)):
        np.random.seed(0)  # for dropout
        trainer_of(chainer.links.Classifier(model), batches, 2, tmp_path).run()
    for (name, mine), (_, other) in zip(cached.namedparams(), whole.namedparams(), strict=True):
        np.testing.assert_array_equal(mine.array, other.array, err_msg=name)
    moved = bridge.from_chain(cached, net)
    assert np.array_equal(moved["conv1"].weight, net["conv1"].weight)
    assert not np.array_equal(moved["fc8"].weight, bridge.from_chain(made()[1], net)["fc8"].weight)


def test_there_is_no_trunk_without_frozen_layers() -> None:
    from bridge.finetuning import CachedTrunk

    with pytest.raises(UsageError, match="no frozen layers are below"):
        CachedTrunk(*made())
    with pytest.raises(UsageError, match="24 images and 3 labels"):
        CachedTrunk(*made("conv*")).dataset(images()[0], np.zeros(3, np.int32))


def test_the_rate_follows_the_recipe(tmp_path: Path) -> None:
    from bridge.chain.functions import chainer
    from bridge.finetuning import CaffeOptimizer, RateSchedule

    x, labels = images(8)
    recipe = bridge.Recipe(base_lr=0.1, lr_policy="step", gamma=0.5, stepsize=2)
    optimizer = CaffeOptimizer(recipe).setup(chainer.links.Classifier(made()[1]))
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(x, labels), 4)
    trainer = chainer.training.Trainer(
        chainer.training.updaters.StandardUpdater(iterator, optimizer), (5, "iteration"), out=str(tmp_path)
    )
    seen: list[float] = []
    update = optimizer.update
    optimizer.update = lambda *given, **named: (seen.append(optimizer.rate), update(*given, **named))
    trainer.extend(RateSchedule())
    trainer.run()
    assert seen == [recipe.rate(iteration) for iteration in range(5)]
    assert seen[0] > seen[2] > seen[4]


def test_an_extension_freezes_layers_until_an_epoch(tmp_path: Path) -> None:
    from bridge.chain.functions import chainer
    from bridge.finetuning import Freeze

    x, labels = images(8)
    chain = made()[1]
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(x, labels), 4)
    trainer = trainer_of(chainer.links.Classifier(chain), iterator, 4, tmp_path)
    trainer.extend(Freeze("conv*", until=2))
    seen: list[np.ndarray] = []

    def look(trainer: Any) -> None:
        seen.append(chain.child("conv1").W.array.copy())

    seen.append(chain.child("conv1").W.array.copy())
    trainer.extend(look, trigger=(1, "epoch"))
    trainer.run()
    kept = [np.array_equal(one, other) for one, other in itertools.pairwise(seen)]
    assert kept == [True, True, False, False]


def test_chainers_extensions_read_and_set_the_rate(tmp_path: Path) -> None:
    """LogReport, Evaluator and snapshot beside them; a trainer that loads the snapshot goes on."""
    from bridge.chain.functions import chainer

    extensions = chainer.training.extensions

    def trainer_with_extensions(epochs: int) -> tuple[Any, Any]:
        x, labels = images(8)
        model = chainer.links.Classifier(made()[1])
        data = chainer.datasets.TupleDataset(x, labels)
        trainer = trainer_of(model, chainer.iterators.SerialIterator(data, 4, shuffle=False), epochs, tmp_path)
        held_out = chainer.iterators.SerialIterator(data, 4, repeat=False, shuffle=False)
        trainer.extend(extensions.Evaluator(held_out, model))
        trainer.extend(extensions.ExponentialShift("lr", 0.5), trigger=(1, "epoch"))
        trainer.extend(extensions.observe_lr())
        trainer.extend(extensions.LogReport())
        trainer.extend(extensions.snapshot(filename="snapshot"), trigger=(1, "epoch"))
        return trainer, model

    trainer_with_extensions(1)[0].run()
    resumed, _ = trainer_with_extensions(3)
    chainer.serializers.load_npz(tmp_path / "snapshot", resumed)
    resumed.run()
    optimizer = resumed.updater.get_optimizer("main")
    assert optimizer.rate == optimizer.lr == pytest.approx(0.01 / 8)
    log = resumed.get_extension("LogReport").log
    assert [entry["lr"] for entry in log] == pytest.approx([0.01, 0.005, 0.0025])  # of the last update
    assert all(np.isfinite(entry["validation/main/loss"]) for entry in log)
