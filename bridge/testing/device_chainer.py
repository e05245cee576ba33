"""What of Chainer is replaced while the stand-in of :mod:`bridge.testing.device` is in use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.testing.device import DeviceArray, DeviceModule, _values

_Node = chainer.FunctionNode
_inside = 0
"""How many of Chainer's own functions are under way: within, arrays are NumPy's."""
_off = False
"""Whether chains compute as they do without the stand-in."""


def replacements(module: DeviceModule) -> list[tuple[Any, str, Any]]:
    """Object, name and replacement of each attribute."""
    backend, own_module = chainer.backend, chainer.backend.get_array_module
    return [
        (_Node, "apply", _applied),
        (_Node, "forward", _forward),
        (_Node, "get_retained_inputs", _retained(_Node.get_retained_inputs)),
        (_Node, "get_retained_outputs", _retained(_Node.get_retained_outputs)),
        (backend.CpuDevice, "xp", property(lambda self: np if _inside else module)),
        (backend.CpuDevice, "send_array", _sent(backend.CpuDevice.send_array)),
        (backend, "get_array_module", lambda *args: own_module(*args) if _inside else module),
        (chainer.variable, "_check_grad_type", lambda *args: None),
        (chainer, "get_array_types", _array_types(chainer.get_array_types)),
    ]


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """A context in which chains compute with NumPy's arrays, as they do without the stand-in."""
    global _inside, _off
    _inside, _off = _inside + 1, True
    try:
        yield
    finally:
        _inside, _off = _inside - 1, False


def _sent(own: Any) -> Any:
    """``CpuDevice.send_array``: outside of Chainer's functions, arrays go to the stand-in's device."""

    def sent(device: Any, array: Any) -> Any:
        return array if isinstance(array, DeviceArray) and not _inside else own(device, array)

    return sent


def _array_types(own: Any) -> Any:
    return lambda: (*own(), DeviceArray)


_apply, _own_forward = _Node.apply, _Node.forward


def _applied(node: Any, inputs: Any) -> Any:
    """``FunctionNode.apply`` with NumPy's arrays in the variables, and the device's in the results."""
    global _inside
    if _inside:
        return _apply(node, inputs)
    if type(node).__module__.startswith("chainer."):  # its settings may be arrays, such as a mask or places
        vars(node).update({key: _values(value) for key, value in vars(node).items()})
    variables = [
        chainer.as_variable(value) if not isinstance(value, DeviceArray) else _variable(value) for value in inputs
    ]
    before = [variable._data[0] for variable in variables]
    _inside += 1
    try:
        for variable in variables:
            variable._data[0] = _host(variable._data[0])
        made = _apply(node, variables)
    finally:
        _inside -= 1
        for variable, array in zip(variables, before, strict=True):
            variable._data[0] = array
    for variable in made:
        _put_on_device(variable)
    return made


def _forward(node: Any, inputs: Any) -> Any:
    """``FunctionNode.forward``; a function of this project for the GPU runs on the device's arrays."""
    global _inside
    own = getattr(type(node), "forward_gpu", None)
    if own is None or _off or not own.__module__.startswith("bridge."):
        return _own_forward(node, inputs)
    depth, _inside = _inside, 0
    try:
        made = node.forward_gpu(tuple(map(DeviceArray, inputs)))
    finally:
        _inside = depth
    return tuple(map(_host, made))


def _retained(own: Any) -> Any:
    def retained(node: Any) -> Any:
        found = own(node)
        for variable in found:
            if variable is not None and not _inside:
                _put_on_device(variable)
        return found

    return retained


def _variable(array: DeviceArray) -> Any:
    """A variable without gradient that holds an array of the device."""
    made = chainer.Variable(array._values, requires_grad=False)
    made._data[0] = array
    return made


def _put_on_device(variable: Any) -> None:
    if isinstance(variable._data[0], np.ndarray):
        variable._data[0] = DeviceArray(variable._data[0])


def _host(array: Any) -> Any:
    return array._values if isinstance(array, DeviceArray) else array
