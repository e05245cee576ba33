"""Nothing is computed for what is frozen; the article's hook; freezing on a GPU."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bridge
from tests.conftest import FASHION, need
from tests.test_freezing import built, hook, optimizer_named, state, step, written

pytestmark = pytest.mark.filterwarnings("ignore:.*(zero|clear)grads? is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Some of the optimizers, such as MSVAG with its default rate, run away on data that is noise."""
    with np.errstate(all="ignore"):
        yield


# ---- what it costs ----------------------------------------------------------------------------


def calls(chain: Any, run: Callable[[], Any]) -> list[str]:
    """The functions that ran: their labels, with ``<`` in front for a backward pass."""
    from bridge.chain.functions import chainer

    class Count(chainer.FunctionHook):
        name = "Count"

        def __init__(self) -> None:
            self.labels: list[str] = []

        def forward_preprocess(self, function: Any, in_data: Any) -> None:
            self.labels.append(function.label)

        def backward_preprocess(self, function: Any, in_data: Any, out_grad: Any) -> None:
            self.labels.append(f"<{function.label}")

    with Count() as count:
        run()
    return count.labels


def backward(chain: Any) -> Callable[[], None]:
    from bridge.chain.functions import chainer

    x, t = np.ones((4, 4, 6, 6), np.float32), np.zeros(4, np.int32)

    def run() -> None:
        chain.cleargrads()
        chainer.functions.softmax_cross_entropy(chain(x), t).backward()

    return run


def test_nothing_below_the_lowest_trained_layer_is_back_propagated() -> None:
    chain = built()
    everything = calls(chain, backward(chain))
    assert everything.count("<Convolution") == 2
    bridge.freeze(chain, "conv*", "bn*", "scale*")
    found = calls(chain, backward(chain))
    assert [label for label in found if label[0] == "<"] == ["<SoftmaxCrossEntropy", "<LinearFunction"]
    assert [path for path, param in chain.namedparams() if param.grad is not None] == ["/fc/W", "/fc/b"]
    bridge.thaw(chain, "conv2/a")
    found = calls(chain, backward(chain))
    assert found.count("<Convolution") == 1
    assert found.count("Deconvolution") == 0  # the gradient of a convolution's input
    assert chain.child("conv1").W.grad is None
    bridge.thaw(chain, "*")
    assert calls(chain, backward(chain)) == everything


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shapes of convolutions' weights of which gradients are computed."""
    need("chainer")
    convolution: Any = importlib.import_module("bridge.chain.functions.convolution")
    shapes, compute = [], convolution._weight_gradient

    def noted(function: Any, x: Any, gy: Any, total: Any) -> Any:
        shapes.append(total.shape)
        return compute(function, x, gy, total)

    monkeypatch.setattr(convolution, "_weight_gradient", noted)
    products: Any = importlib.import_module("bridge.chain.functions.helper_products").WindowProducts
    computed = products.weight_gradient

    def noted_too(self: Any, x: Any, g: Any, shape: Any) -> Any:
        shapes.append(shape)
        return computed(self, x, g, shape)

    monkeypatch.setattr(products, "weight_gradient", noted_too)
    return shapes


def test_no_gradient_is_computed_for_a_frozen_layer_above_a_trained_one(weights: list[Any]) -> None:
    chain = built()
    bridge.freeze(chain, "conv2/a")
    labels = calls(chain, backward(chain))
    assert labels.count("<Convolution") == 2
    assert weights == [chain.child("conv1").W.shape]
    assert chain.child("conv2/a").W.grad is None
    assert chain.child("conv1").W.grad is not None


def test_a_users_chain_stops_there_too() -> None:
    chain = written()
    chain(np.ones((4, 4, 6, 6), np.float32))
    bridge.freeze(chain, "blocks")
    found = {label for label in calls(chain, backward(chain)) if label[0] == "<"}
    assert found == {"<SoftmaxCrossEntropy", "<LinearFunction", "<ReLU", "<BroadcastTo", "<_ * _"}


def test_hooks_see_no_gradient_of_what_is_frozen() -> None:
    """Weight decay adds to zeros that nobody keeps; so the norm for clipping is that of what is trained."""
    chain = built()
    optimizer = optimizer_named("SGD").setup(chain)
    optimizer.add_hook(hook("WeightDecay"))
    bridge.freeze(chain, "conv*", "bn*", "scale*")
    norms: list[float] = []

    def norm(optimizer: Any) -> None:
        norms.append(sum(float((param.grad**2).sum()) for param in optimizer.target.params()))

    optimizer.add_hook(norm, name="norm")
    step(chain, optimizer)
    head = chain.child("fc")
    assert norms == [pytest.approx(sum(float((param.grad**2).sum()) for param in head.params()))]
    assert not chain.child("conv1").W.grad.any()


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
