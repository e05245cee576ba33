"""A chain on arrays that are not NumPy's, and on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import UnsupportedLayerError
from tests.conftest import need
from tests.strategies import CASES
from tests.test_chain import IN_PLACE, X, built, outputs


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


# ---- arrays that are not NumPy's --------------------------------------------------------------


@pytest.fixture
def device() -> Iterator[Any]:
    """The stand-in for CuPy."""
    from bridge.testing.device import standing_in
    from bridge.testing.device_kernels import compiler

    if compiler() is None:
        pytest.skip("there is no C++ compiler to run kernels with")
    with standing_in() as module:
        yield module


def passed(chain: Any, inputs: dict[str, Any], train: bool) -> tuple[list[Any], list[Any]]:
    """The outputs of a chain, and the gradients of its inputs and parameters."""
    from bridge.chain.functions import chainer

    chain.cleargrads()
    with chainer.using_config("train", train), chainer.using_config("type_check", False), np.errstate(all="ignore"):
        fed = {key: chainer.Variable(getattr(value, "_values", value)) for key, value in inputs.items()}
        for key, value in inputs.items():
            fed[key]._data[0] = value
        values = chain.run(fed)
        tops = [values[key] for key in chain.net_outputs if key in values]
        loss = sum((top * top).array.sum() * 0 + F_sum(top * 0.5) for top in tops if top.requires_grad)
        if not isinstance(loss, (int, float)):
            loss.backward()
    own = [param.grad for _, param in sorted(chain.namedparams())]
    return [top.array for top in tops], [*(fed[key].grad for key in sorted(fed)), *own]


def F_sum(variable: Any) -> Any:
    from bridge.chain.functions import chainer

    return chainer.functions.sum(variable)


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_layers_compute_on_a_device_what_they_compute_on_the_host(name: str, train: bool, device: Any) -> None:
    """Forward and backward; arrays of the host and the device never mix, and each kernel runs."""
    from bridge.testing.device import DeviceArray, to_device
    from bridge.testing.device_chainer import on_host

    @settings(max_examples=6)
    @given(CASES[name])
    def check(case: Any) -> None:
        net, inputs = case.net(), case.inputs()
        try:
            chain = bridge.build_chain(net)
        except UnsupportedLayerError:
            return
        before = copy.deepcopy(chain)
        found = passed(to_device(chain), {key: DeviceArray(value) for key, value in inputs.items()}, train)
        with on_host():
            expected = passed(before, inputs, train)
        if net.layers[-1].draws_random and train:
            return
        for mine, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
            if theirs is not None:
                np.testing.assert_allclose(mine.get(), theirs, rtol=1e-4, atol=1e-5)

    check()


# ---- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_gpu_computes_what_the_cpu_does(name: str) -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    @settings(max_examples=5)
    @given(CASES[name])
    def check(case: Any) -> None:
        try:
            chain = bridge.build_chain(case.net())
        except UnsupportedLayerError:
            return
        on_gpu = copy.deepcopy(chain)
        on_gpu.to_device("@cupy:0")
        to_cpu = chainer.backends.cuda.to_cpu
        inputs = case.inputs()
        expected = outputs(chain, inputs)
        found = outputs(on_gpu, {key: on_gpu.xp.asarray(value) for key, value in inputs.items()})
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(to_cpu(a), b, rtol=1e-3, atol=1e-4)

    check()


@pytest.mark.gpu
def test_training_on_a_gpu_gives_the_same_net() -> None:
    from bridge.chain.functions import chainer

    trained = []
    for device in ("@numpy", "@cupy:0"):
        chain = built(IN_PLACE)
        chain.to_device(device)
        optimizer = chainer.optimizers.MomentumSGD().setup(chain)
        x, t = chain.xp.asarray(X), chain.xp.asarray(np.int32([0, 1]))
        for _ in range(3):
            optimizer.update(lambda: chainer.functions.softmax_cross_entropy(chain(x), t))  # noqa: B023
        trained.append(bridge.from_chain(chain, assemble(None, prototxt.parse(IN_PLACE))))
    for a, b in zip(*trained, strict=True):
        for role, values in a.blobs.items():
            np.testing.assert_allclose(b.blobs[role], values, rtol=1e-3, atol=1e-4)
