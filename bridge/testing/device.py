"""A stand-in for CuPy, for tests without a GPU: what a device would refuse or wait for, it refuses or counts.

Its arrays hold NumPy's, and do not become NumPy's by themselves: ``numpy.asarray``, NumPy's functions and arithmetic
with NumPy's arrays raise, as with CuPy. Each copy between host and device is counted. The module has the names that
CuPy 13.6 and 14 have, and no others. Kernels in CUDA's C are compiled as C++ and run on the processor.

Example: ``with standing_in() as device: ...`` computes chains on the stand-in, and ``device.copies`` says how often
values came back to the host.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from bridge.testing.device_kernels import RawKernel
from bridge.testing.device_names import ARRAY_NAMES, MODULE_NAMES

COUNTED = ("to_host", "to_device")
_FROM_HOST = ("array", "asarray", "ascontiguousarray")
_counts = dict.fromkeys(COUNTED, 0)


class DeviceArray:
    """An array on the stand-in's device.

    Args:
        values: The NumPy array that it holds.
    """

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in ARRAY_NAMES:
            raise AttributeError(f"CuPy's array has no attribute '{name}'")
        found = getattr(self._values, name)
        return _wrapped_call(name, found) if callable(found) else _on_device(found)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed; take .get()")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if not any(isinstance(value, np.generic) for value in inputs):  # a NumPy number times an array is CuPy's
            raise TypeError(f"numpy.{ufunc.__name__} of a device's array; take the array's own module")
        return _on_device(getattr(ufunc, method)(*map(_values, inputs), **options))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of a device's array; take the array's own module")

    def get(self) -> np.ndarray:
        """A copy on the host."""
        _counts["to_host"] += 1
        return self._values.copy()

    def set(self, values: np.ndarray) -> None:
        """Copy values of the host into the array."""
        _counts["to_device"] += 1
        self._values[...] = values

    def item(self) -> Any:
        """The only value, on the host."""
        return self.get().item()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __index__(self) -> int:
        return operator.index(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return (DeviceArray(part) for part in self._values)

    def __getitem__(self, key: Any) -> Any:
        return DeviceArray(self._values[_values(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse(value)
        self._values[_values(key)] = _values(value)

    def __deepcopy__(self, memo: Any) -> DeviceArray:
        return DeviceArray(self._values.copy())

    def __repr__(self) -> str:
        return f"DeviceArray({self._values!r})"


def _operator(name: str, function: Callable[..., Any]) -> None:
    """Give the arrays an operator, its reflection and its in-place form."""

    def plain(self: DeviceArray, other: Any) -> Any:
        return _apply(function, self, other)

    def reflected(self: DeviceArray, other: Any) -> Any:
        return _apply(function, other, self)

    def in_place(self: DeviceArray, other: Any) -> Any:
        _refuse(other)
        self._values = np.asarray(getattr(operator, f"i{name.strip('_')}")(self._values, _values(other)))
        return self

    setattr(DeviceArray, f"__{name}__", plain)
    setattr(DeviceArray, f"__r{name}__", reflected)
    if hasattr(operator, f"i{name.strip('_')}"):
        setattr(DeviceArray, f"__i{name}__", in_place)


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    _operator(_name, getattr(operator, f"{_name}_" if _name in ("and", "or") else _name))


def _applied(self: DeviceArray, function: Callable[..., Any], *others: Any) -> Any:
    return _apply(function, self, *others)


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"):
    setattr(DeviceArray, f"__{_name}__", functools.partialmethod(_applied, getattr(operator, _name)))


def _values(value: Any) -> Any:
    """A value with NumPy's arrays in place of the device's."""
    if isinstance(value, DeviceArray):
        return value._values
    if isinstance(value, dict):
        return {key: _values(item) for key, item in value.items()}
    return type(value)(map(_values, value)) if type(value) in (list, tuple) else value


def _on_device(value: Any) -> Any:
    if isinstance(value, (tuple, list)) and any(isinstance(item, np.ndarray) for item in value):
        return type(value)(map(_on_device, value))
    return DeviceArray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _refuse(*values: Any) -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}: an array of the host among the device's")
        if isinstance(value, (list, tuple)):
            _refuse(*value)


def _apply(function: Callable[..., Any], *values: Any) -> Any:
    _refuse(*values)
    return _on_device(function(*map(_values, values)))


def _wrapped_call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if name in _FROM_HOST and isinstance(args[0], np.ndarray):
            _counts["to_device"] += 1
            made = np.array(*args, **kwargs) if name == "array" else function(*args, **kwargs)
            return DeviceArray(np.array(made))
        _refuse(*args, *kwargs.values())
        out = kwargs.get("out")
        made = function(*_values(args), **_values(kwargs))
        return out if out is not None else _on_device(made)

    return call


class _Ufunc:
    """One of the module's ufuncs, with ``at``, ``accumulate`` and ``reduce``."""

    def __init__(self, ufunc: np.ufunc) -> None:
        self._ufunc = ufunc

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _wrapped_call(self._ufunc.__name__, self._ufunc)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _wrapped_call(name, getattr(self._ufunc, name))


class _Random:
    """CuPy's generator: ``seed`` and ``rand``, with the numbers of NumPy's."""

    seed = staticmethod(np.random.seed)

    def rand(self, *shape: int, dtype: Any = float) -> DeviceArray:
        """Numbers in [0, 1)."""
        return DeviceArray(np.random.rand(*shape).astype(dtype))


class DeviceModule:
    """The stand-in's module, in the place of ``cupy``.

    Attributes:
        ndarray: The type of its arrays.
        RawKernel: Kernels in CUDA's C.
    """

    ndarray = DeviceArray
    RawKernel = RawKernel
    random = _Random()

    def __getattr__(self, name: str) -> Any:
        if name not in MODULE_NAMES:
            raise AttributeError(f"CuPy has no attribute '{name}'")
        found = getattr(np, name)
        if isinstance(found, np.ufunc):
            return _Ufunc(found)
        return found if isinstance(found, type) or not callable(found) else _wrapped_call(name, found)

    @property
    def copies(self) -> int:
        """How often values were copied to the host so far."""
        return _counts["to_host"]

    @property
    def uploads(self) -> int:
        """How often values were copied to the device so far."""
        return _counts["to_device"]


@contextlib.contextmanager
def standing_in() -> Iterator[DeviceModule]:
    """Let Chainer's variables hold the stand-in's arrays.

    Inside, the array module of every variable is the stand-in. Functions of this project run on its arrays; Chainer's
    own functions, which were written for CuPy, compute with the NumPy arrays that they hold.
    """
    from bridge.testing.device_chainer import replacements

    module = DeviceModule()
    with contextlib.ExitStack() as stack:
        for target, name, value in replacements(module):
            stack.enter_context(mock.patch.object(target, name, value))
        yield module


def to_device(chain: Any) -> Any:
    """Put a chain's parameters and statistics onto the stand-in's device; returns the chain."""
    for link in chain.links():
        for name in link._params:
            param = getattr(link, name)
            param._data[0] = DeviceArray(param.array)
        for name in link._persistent:
            if isinstance(getattr(link, name), np.ndarray):
                setattr(link, name, DeviceArray(getattr(link, name)))
    return chain
