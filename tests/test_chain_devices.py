"""A chain on arrays that are not NumPy's, and on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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


class Foreign(np.ndarray):
    """Stands for CuPy's array: outside Chainer's own functions it does not mix with NumPy's."""

    inside = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        _refuse(inputs, ufunc)
        plain = [_plain(value) for value in inputs]
        if out is not None:
            options["out"] = tuple(_plain(value) for value in out)
        made = getattr(ufunc, method)(*plain, **options)
        return out[0] if out is not None else _foreign(made)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _refuse(_flat(args), function)
        return _foreign(function(*_map(args, _plain), **_map(kwargs, _plain)))


def _refuse(values: Any, function: Any) -> None:
    mixed = [value for value in values if type(value) is np.ndarray and value.ndim]
    if mixed and not Foreign.inside:
        raise TypeError(f"{function}: NumPy's array among another's")


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, (list, tuple)) else (value,)


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    return function(value)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Foreign) else value


def _foreign(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_foreign, value))
    return value.view(Foreign) if isinstance(value, np.ndarray) else value


class ForeignModule:
    """Stands for ``cupy``: NumPy's functions, for its own arrays alone."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, (type, float)) or not callable(found):
            return found
        if isinstance(found, np.ufunc):
            return _Ufunc(found)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in ("asarray", "array"):
                _refuse(_flat(args), name)
            return _foreign(found(*_map(args, _plain), **_map(kwargs, _plain)))

        return call


class _Ufunc:
    def __init__(self, ufunc: np.ufunc) -> None:
        self.ufunc = ufunc
        self.at = ufunc.at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _refuse(args, self.ufunc)
        return _foreign(self.ufunc(*_map(args, _plain), **_map(kwargs, _plain)))


@pytest.fixture
def foreign(monkeypatch: Any) -> ForeignModule:
    """Every array outside Chainer's functions is foreign, and every ``xp`` the foreign module."""
    need("chainer")
    from bridge.chain.functions import chainer

    module = ForeignModule()
    node, device = chainer.function_node.FunctionNode, chainer.backend.CpuDevice
    apply, own_module = node.apply, chainer.backend.get_array_module

    def applied(self: Any, inputs: Any) -> Any:
        Foreign.inside += 1
        try:
            inputs = [chainer.as_variable(value) for value in inputs]
            made = apply(self, [chainer.Variable(_plain(v.array), requires_grad=v.requires_grad) for v in inputs])
        finally:
            Foreign.inside -= 1
        for variable in made:
            variable._data[0] = _foreign(variable.array)
        return made

    monkeypatch.setattr(node, "apply", applied)
    monkeypatch.setattr(device, "xp", property(lambda self: np if Foreign.inside else module))
    pool = chainer.functions.max_pooling_2d  # gives places as a bare array
    monkeypatch.setattr(chainer.functions, "max_pooling_2d", lambda *args, **options: _foreign(pool(*args, **options)))
    monkeypatch.setattr(
        chainer.backend, "get_array_module", lambda *args: own_module(*args) if Foreign.inside else module
    )
    return module


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_lowerings_never_mix_numpy_with_the_arrays_they_are_given(name: str, train: bool, foreign: Any) -> None:
    from bridge.chain.functions import chainer

    @settings(max_examples=10)
    @given(CASES[name])
    def check(case: Any) -> None:
        net = case.net()
        try:
            chain = bridge.build_chain(net)
        except UnsupportedLayerError:
            return
        inputs = case.inputs()
        Foreign.inside += 1
        try:
            expected = run(copy.deepcopy(chain), inputs, train)
        finally:
            Foreign.inside -= 1
        for link in chain.links():
            for key in link._params:
                getattr(link, key)._data[0] = _foreign(getattr(link, key).array)
            for key in link._persistent:
                setattr(link, key, _foreign(getattr(link, key)))
        found = run(chain, {key: _foreign(value) for key, value in inputs.items()}, train)
        for a, b in zip(found, expected, strict=True):
            if net.layers[-1].type != "Dropout" or not train:
                np.testing.assert_allclose(_plain(a), _plain(b), rtol=1e-4, atol=1e-5)

    def run(chain: Any, inputs: Any, train: bool) -> list[np.ndarray]:
        with chainer.using_config("train", train), np.errstate(all="ignore"):
            values = chain.run(inputs)
        return [values[key].array for key in chain.net_outputs if key in values]

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
