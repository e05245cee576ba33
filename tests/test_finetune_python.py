"""Fine-tuning from Python: a net and arrays in, a run out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import UsageError
from tests.conftest import need
from tests.finetuning import MODEL, log_of, small_npz


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


def test_a_net_and_arrays(tmp_path: Path) -> None:
    with np.load(small_npz(tmp_path / "data.npz")) as archive:
        x, y = archive["x"], archive["y"]
    net, told = bridge.load(*MODEL), []
    listener = bridge.finetuning.Listener(step=told.append)
    settings = {"head": {"fc8": 4}, "train_head": True, "scale": 1 / 256, "epochs": 3, "listener": listener}
    run = bridge.finetune(net, (x, y), output=tmp_path / "run", **settings)
    assert len(run.history) == len(told) == len(log_of(tmp_path / "run"))
    assert run.files["model.onnx"].exists()
    assert run.verdict.learned
    assert run.chain.child("fc8").W.array.shape == (4, 64)
    same = bridge.finetune(net, str(tmp_path / "data.npz"), output=tmp_path / "file", **settings)
    assert [record["loss"] for record in same.history] == [record["loss"] for record in run.history]


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs data and output"):
        bridge.finetune(bridge.load(*MODEL), output=tmp_path / "run")


def test_parts_serve_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    """Freezing and Caffe's solver as an optimizer, in Chainer's Trainer."""
    from bridge.chain.functions import chainer
    from bridge.finetuning import Recipe
    from bridge.finetuning.rules import CaffeOptimizer

    with np.load(small_npz(tmp_path / "data.npz", 64, 10)) as archive:
        x, y = archive["x"][:, None].astype(np.float32) / 256, archive["y"].astype(np.int32)
    chain = bridge.build_chain(bridge.load(*MODEL).with_outputs("fc8"))
    bridge.freeze(chain, "conv*")
    before = chain.child("conv1").W.array.copy(), chain.child("fc8").W.array.copy()
    model = chainer.links.Classifier(chain)
    optimizer = CaffeOptimizer(Recipe(base_lr=0.01, momentum=0.9)).setup(model)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(x, y), 16)
    updater = chainer.training.updaters.StandardUpdater(iterator, optimizer)
    chainer.training.Trainer(updater, (1, "epoch"), out=str(tmp_path / "result")).run()
    assert np.array_equal(chain.child("conv1").W.array, before[0])
    assert not np.array_equal(chain.child("fc8").W.array, before[1])
