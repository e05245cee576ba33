"""The article's hook, and freezing on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import bridge
from tests.conftest import FASHION, need
from tests.test_freezing import built, hook, optimizer_named, state, step

pytestmark = pytest.mark.filterwarnings("ignore:.*(zero|clear)grads? is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Some of the optimizers, such as MSVAG with its default rate, run away on data that is noise."""
    with np.errstate(all="ignore"):
        yield


# ---- the article's hook ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MomentumSGD", "Adam"])
def test_the_articles_hook_stops_the_update(name: str, weights: list[Any]) -> None:
    need("chainer")
    from bridge.chain import DelGradient

    chain = bridge.build_chain(bridge.load(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel"))
    optimizer = optimizer_named(name).setup(chain)
    optimizer.add_hook(hook("WeightDecay"))
    optimizer.add_hook(DelGradient(["conv2", "fc6"]))
    from bridge.chain.functions import chainer

    before, others = state(chain, ["conv2", "fc6"]), state(chain, ["conv1", "conv3", "fc8"])
    rng = np.random.default_rng(0)
    x, t = rng.random((4, 1, 28, 28)).astype("f"), rng.integers(0, 10, 4).astype("i")
    computed = []
    for _ in range(3):
        optimizer.update(lambda: chainer.functions.softmax_cross_entropy(chain(x), t))
        computed.append(len(weights))
    assert state(chain, ["conv2", "fc6"]) == before
    assert all(bits != others[key] for key, bits in state(chain, ["conv1", "conv3", "fc8"]).items())
    assert computed == [3, 5, 7]  # three convolutions, and later the two that are trained


def test_the_articles_hook_knows_layers_by_their_own_names() -> None:
    chain = built()
    from bridge.chain import DelGradient

    optimizer = optimizer_named("SGD").setup(chain)
    optimizer.add_hook(DelGradient(["conv2/a", "bn"]))
    step(chain, optimizer)
    before = state(chain, ["conv2/a", "bn1", "bn2"])
    step(chain, optimizer, 1)
    assert state(chain, ["conv2/a", "bn1", "bn2"]) == before


@pytest.mark.gpu
def test_freezing_holds_on_a_gpu() -> None:
    chain = built()
    chain.to_device("@cupy:0")
    bridge.freeze(chain, "conv*", "bn*", "scale*")
    from bridge.chain.functions import chainer

    optimizer = optimizer_named("Adam").setup(chain)
    for name in ("WeightDecay", "GradientClipping"):
        optimizer.add_hook(hook(name))
    names = ["conv1", "bn1", "scale1", "conv2/a", "bn2"]
    before = gpu_state(chain, names)
    x, t = chain.xp.ones((4, 4, 6, 6), "f"), chain.xp.zeros(4, "i")
    optimizer.update(lambda: chainer.functions.softmax_cross_entropy(chain(x), t))
    assert gpu_state(chain, names) == before


def gpu_state(chain: Any, names: list[str]) -> dict[str, bytes]:
    """As :func:`state`, from the GPU."""
    twin = copy.deepcopy(chain)
    twin.to_device("@numpy")
    return state(twin, names)
