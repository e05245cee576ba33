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
from bridge.errors import MissingExtraError, UnsupportedLayerError, UsageError
from tests.conftest import need
from tests.strategies import CASES
from tests.test_chain import IN_PLACE, X, built
from tests.test_losses import CASES as RECORDED


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


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_losses_on_a_device_are_what_caffe_recorded(name: str, device: Any) -> None:
    from bridge.chain.functions import chainer
    from bridge.testing.device import DeviceArray, to_device

    case = RECORDED[name]
    net = assemble(None, prototxt.parse(str(case["net"])))
    chain = to_device(bridge.build_chain(net))
    inputs = {key[3:]: chainer.Variable(value) for key, value in case.items() if key.startswith("in:")}
    for variable in inputs.values():
        variable._data[0] = DeviceArray(variable.array)
    values = chain.run(inputs)
    for key, expected in case.items():
        if key.startswith("out:"):
            np.testing.assert_allclose(values[key[4:]].array.get(), expected, 1e-5, 1e-6)
    if any(key.startswith("bottom:") for key in case):
        (values["loss"] * net.layers[-1].loss_weights[0]).backward()  # type: ignore[attr-defined]
    for key, expected in case.items():
        if key.startswith("bottom:"):
            np.testing.assert_allclose(inputs[key[7:]].grad.get(), expected, 1e-5, 1e-7)


class _SeenError(Exception):
    """Ends a test where the values that it looks at are there."""


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_the_softmax_loss_weighs_classes_on_a_device(dtype: str, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows no weights, so it is not taken."""
    from bridge.chain.functions import chainer, softmax_with_loss
    from bridge.testing.device import DeviceArray

    def seen(shape: Any, target: Any, counted: Any, divisor: int) -> None:
        assert counted.get().tolist() == [1, 5, 0.5, 1, 5, 0.5]
        raise _SeenError

    monkeypatch.setattr(softmax_with_loss, "_SoftmaxLoss", seen)
    text = 'input: "x" input_shape { dim: 6 dim: 3 } input: "label" input_shape { dim: 6 } layer { name: "loss" '
    text += 'type: "SoftmaxWithLoss" bottom: "x" bottom: "label" loss_param { weight_by_label_freqs: true '
    text += "class_weighting: 1 class_weighting: 5 class_weighting: 0.5 } }"
    fed = [chainer.Variable(np.zeros(1, "f")) for _ in range(2)]
    fed[0]._data[0], fed[1]._data[0] = DeviceArray(np.zeros((6, 3), dtype)), DeviceArray(np.arange(6) % 3)
    with pytest.raises(_SeenError):
        softmax_with_loss.caffe_softmax_with_loss(*fed, assemble(None, prototxt.parse(text)).layers[-1])  # type: ignore[arg-type]


def test_the_softmax_loss_has_a_second_derivative_on_a_device(device: Any) -> None:
    from bridge.chain.functions import chainer
    from bridge.testing.device import DeviceArray
    from bridge.testing.device_chainer import on_host

    case = RECORDED[next(name for name in sorted(RECORDED) if "SoftmaxWithLoss" in str(RECORDED[name]["net"]))]
    chain = bridge.build_chain(assemble(None, prototxt.parse(str(case["net"]))))

    def second(wrap: Any) -> Any:
        fed = {key[3:]: chainer.Variable(value) for key, value in case.items() if key.startswith("in:")}
        for variable in fed.values():
            variable._data[0] = wrap(variable.array)
        (first,) = chainer.grad([chain.run(fed)["loss"]], [fed["x"]], enable_double_backprop=True)
        (twice,) = chainer.grad([chainer.functions.sum(first * first)], [fed["x"]])
        return twice.array

    found = second(DeviceArray).get()
    with on_host():
        expected = second(lambda array: array)
    np.testing.assert_allclose(found, expected, 1e-4, 1e-7)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("name", ["Pooling", "Interp", "ROIPooling", "PSROIPooling", "Upsample"])
def test_linear_layers_have_a_second_derivative_on_a_device(name: str, device: Any) -> None:
    """The derivative of the squared gradient, against the gradient of the same on the host."""
    from bridge.chain.functions import chainer
    from bridge.testing.device import DeviceArray, to_device
    from bridge.testing.device_chainer import on_host

    def second(chain: Any, fed: dict[str, Any]) -> Any:
        x = next(iter(fed.values()))
        top = next(iter(chain.run(fed)[key] for key in chain.net_outputs))
        (first,) = chainer.grad([chainer.functions.sum(top * top)], [x], enable_double_backprop=True)
        (twice,) = chainer.grad([chainer.functions.sum(first * first)], [x])
        return twice.array

    @settings(max_examples=5)
    @given(CASES[name])
    def check(case: Any) -> None:
        net, inputs = case.net(), case.inputs()
        if len(net.layers[-1].tops) > 1:
            return
        chain = bridge.build_chain(net)
        fed = [{key: chainer.Variable(value) for key, value in inputs.items()} for _ in range(2)]
        for variable in fed[1].values():
            variable._data[0] = DeviceArray(variable.array)
        with np.errstate(all="ignore"):
            with on_host():
                expected = second(chain, fed[0])
            found = second(to_device(chain), fed[1])
        np.testing.assert_allclose(found.get(), expected, 1e-3, 1e-4)

    check()


# ---- on a GPU ---------------------------------------------------------------------------------


BOTH = ["@numpy", pytest.param("@cupy:0", marks=pytest.mark.gpu)]
"""On NumPy these tests compare it with itself, which shows that they run."""


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_gpu_computes_what_the_cpu_does(name: str, train: bool) -> None:
    """Forward and backward."""
    compare_on("@cupy:0", name, train)


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@pytest.mark.parametrize("name", ["Pooling", "LRN", "Interp"])
def test_the_comparison_with_a_gpu_runs(name: str) -> None:
    compare_on("@numpy", name, True)


def compare_on(place: str, name: str, train: bool) -> None:
    from bridge.chain import devices

    @settings(max_examples=5)
    @given(CASES[name])
    def check(case: Any) -> None:
        net, inputs = case.net(), case.inputs()
        try:
            chain = bridge.build_chain(net)
        except UnsupportedLayerError:
            return
        expected = passed(copy.deepcopy(chain), inputs, train)
        with devices.scope(place):
            chain.to_device(place)
            found = passed(chain, {key: chain.xp.asarray(value) for key, value in inputs.items()}, train)
        if net.layers[-1].draws_random and train:
            return
        for mine, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
            if theirs is not None:
                np.testing.assert_allclose(devices.to_host(mine), theirs, rtol=1e-3, atol=1e-4)

    check()


@pytest.mark.parametrize("place", BOTH)
def test_training_on_a_device_gives_the_same_net(place: str) -> None:
    from bridge.chain import devices
    from bridge.chain.functions import chainer

    trained = []
    for device in ("@numpy", place):
        chain = built(IN_PLACE)
        with devices.scope(device):
            chain.to_device(device)
            optimizer = chainer.optimizers.MomentumSGD().setup(chain)
            x, t = chain.xp.asarray(X), chain.xp.asarray(np.int32([0, 1]))
            for _ in range(3):
                optimizer.update(lambda: chainer.functions.softmax_cross_entropy(chain(x), t))  # noqa: B023
        trained.append(bridge.from_chain(chain, assemble(None, prototxt.parse(IN_PLACE))))
    for a, b in zip(*trained, strict=True):
        for role, values in a.blobs.items():
            np.testing.assert_allclose(b.blobs[role], values, rtol=1e-3, atol=1e-4)


# ---- names of devices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "rank", "expected"),
    [("-1", 0, "@numpy"), (-1, 0, "@numpy"), ("cpu", 0, "@numpy"), ("0", 0, "@cupy:0"), (1, 0, "@cupy:1"),
     ("@cupy:1", 0, "@cupy:1"), ("gpu", 1, "@cupy:1")],
)  # fmt: skip
def test_names_of_devices(given_name: Any, rank: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.chain import devices

    monkeypatch.setattr(devices, "cuda_problem", lambda: "")
    monkeypatch.setattr(devices, "cuda_devices", lambda: 2)
    assert devices.parse_device(given_name, local_rank=rank) == expected


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.chain import devices
    from bridge.chain.functions import chainer

    assert devices.parse_device(chainer.get_device("@numpy")) == "@numpy"
    monkeypatch.setattr(devices, "cuda_problem", lambda: "")
    monkeypatch.setattr(devices, "cuda_devices", lambda: 2)
    with pytest.raises(UsageError, match="CUDA finds 2, from 0 to 1"):
        devices.parse_device("2")
    with pytest.raises(UsageError, match="4 processes on one GPU"):
        devices.parse_device("0", local_size=4)
    with pytest.raises(UsageError, match="no device 'cuda'"):
        devices.parse_device("cuda")
    monkeypatch.setattr(devices, "cuda_problem", lambda: "there is no CUDA device")
    with pytest.raises(MissingExtraError, match="there is no CUDA device"):
        devices.parse_device("0")
