"""Nets written in Python: ``L.Convolution(bottom, num_output=20, kernel_size=5)``.

Source: net_spec.py of pycaffe.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from bridge.caffe.proto import caffe_pb2
from bridge.errors import ModelError

_SUFFIX = caffe_pb2.LayerParameter.DESCRIPTOR.name.removeprefix("Layer")
"""What the names of parameter messages end in."""


def param_name_dict() -> dict[str, str]:
    """The name of a layer type's parameter message in ``LayerParameter``, without ``_param``, by the type."""
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields
    return {
        field.message_type.name.removesuffix(_SUFFIX): field.name.removesuffix("_param")
        for field in fields
        if field.name.endswith("_param")
    }


def to_proto(*tops: Top) -> Any:
    """A ``NetParameter`` with all layers that are needed to compute the tops; blobs get names by type and number."""
    layers: OrderedDict[Function, Any] = OrderedDict()
    numbers: Counter[str] = Counter()
    for top in tops:
        top.fn._to_proto(layers, {}, numbers)
    return _net(layers)


def _net(layers: OrderedDict[Function, Any]) -> Any:
    net = caffe_pb2.NetParameter()
    net.layer.extend(layers.values())
    return net


def assign_proto(proto: Any, name: str, val: Any) -> None:
    """Set a field of a message: a dict is a message, a list a repeated field, one value of which may stand alone.

    Raises:
        AttributeError: The message has no such field.
    """
    field = getattr(proto, name)
    repeated = hasattr(field, "extend")
    if repeated and not isinstance(val, (list, tuple)):
        val = [val]
    if isinstance(val, (list, tuple)) and val and isinstance(val[0], Mapping):
        for item in val:
            _assign(field.add(), item)
    elif isinstance(val, (list, tuple)):
        try:
            field.extend(val)
        except TypeError:
            field.extend([int(v) if isinstance(v, float) and v.is_integer() else v for v in val])
    elif isinstance(val, Mapping):
        field.SetInParent()
        _assign(field, val)
    elif isinstance(val, float) and isinstance(field, int) and val.is_integer():
        setattr(proto, name, int(val))  # a division that gave a whole number in Python 2
    else:
        setattr(proto, name, val)


def _assign(proto: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(proto, name, value)


class Top:
    """One of a layer's tops.

    Attributes:
        fn: The layer.
        n: Which of its tops.
    """

    def __init__(self, fn: Function, n: int) -> None:
        self.fn, self.n = fn, n

    def to_proto(self) -> Any:
        """A ``NetParameter`` with all layers that are needed to compute this top."""
        return to_proto(self)

    def _to_proto(self, layers: Any, names: Any, autonames: Counter[str]) -> None:
        self.fn._to_proto(layers, names, autonames)


class Function:
    """A layer: its type, its bottoms and its parameters.

    Args:
        type_name: Caffe's type.
        inputs: The bottoms.
        params: The parameters; ``ntop`` is the number of tops, ``in_place`` lets the tops be the bottoms.

    Raises:
        TypeError: A bottom is no :class:`Top`.
    """

    def __init__(self, type_name: str, inputs: tuple[Any, ...], params: dict[str, Any]) -> None:
        for index, given in enumerate(inputs):
            if not isinstance(given, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(given)})")
        self.type_name, self.inputs, self.params = type_name, inputs, params
        self.ntop: int = params.pop("ntop", 1)
        self.in_place: bool = params.pop("in_place", False)
        self.tops = tuple(Top(self, number) for number in range(self.ntop))

    def _get_name(self, names: dict[Any, str], autonames: Counter[str]) -> str:
        if self not in names:
            names[self] = self._get_top_name(self.tops[0], names, autonames) if self.ntop else self._new(autonames)
        return names[self]

    def _get_top_name(self, top: Top, names: dict[Any, str], autonames: Counter[str]) -> str:
        if top not in names:
            names[top] = top.fn._new(autonames)
        return names[top]

    def _new(self, autonames: Counter[str]) -> str:
        autonames[self.type_name] += 1
        return f"{self.type_name}{autonames[self.type_name]}"

    def _to_proto(self, layers: Any, names: dict[Any, str], autonames: Counter[str]) -> None:
        if self in layers:
            return
        bottoms = []
        for given in self.inputs:
            given._to_proto(layers, names, autonames)
            bottoms.append(layers[given.fn].top[given.n])
        layer = caffe_pb2.LayerParameter(type=self.type_name, bottom=bottoms)
        tops = bottoms if self.in_place else [self._get_top_name(top, names, autonames) for top in self.tops]
        layer.top.extend(tops)
        layer.name = self._get_name(names, autonames)
        for name, value in self.params.items():
            self._set(layer, name, value)
        layers[self] = layer

    def _set(self, layer: Any, name: str, value: Any) -> None:
        """Set a parameter: in the type's own message if that has it, else in the layer itself."""
        own = getattr(layer, f"{_param_names.get(self.type_name, '')}_param", None)
        if own is not None and not name.endswith("param") and name in own.DESCRIPTOR.fields_by_name:
            assign_proto(own, name, value)
            own.SetInParent()
            return
        if name not in layer.DESCRIPTOR.fields_by_name:
            raise UnknownParameterError(f"layer type {self.type_name} has no parameter '{name}'")
        assign_proto(layer, name, value)


class UnknownParameterError(ModelError, AttributeError):
    """A layer has no parameter of that name."""


class NetSpec:
    """A net whose blobs have the names that they are assigned to: ``n.conv1 = L.Convolution(n.data, ...)``.

    Source: net_spec.py; ``keys``, ``vals``, ``update`` and ``del`` that of SSD.
    """

    tops: OrderedDict[str, Top]

    def __init__(self) -> None:
        super().__setattr__("tops", OrderedDict())

    def __setattr__(self, name: str, value: Top) -> None:
        self.tops[name] = value

    def __getattr__(self, name: str) -> Top:
        if name == "tops" or name not in self.tops:  # copying asks before there are any
            raise UnknownBlobError(name)
        return self.tops[name]

    def __setitem__(self, key: str, value: Top) -> None:
        self.tops[key] = value

    def __getitem__(self, item: str) -> Top:
        return self.tops[item]

    def __delitem__(self, name: str) -> None:
        del self.tops[name]

    def keys(self) -> list[str]:
        """The names that were assigned, as SSD's scripts ask for them."""
        return list(self.tops)

    def vals(self) -> list[Top]:
        """The blobs that were assigned, as SSD's scripts ask for them."""
        return list(self.tops.values())

    def update(self, name: str, params: dict[str, Any]) -> None:
        """Change parameters of the layer that makes a blob, as SSD's scripts do."""
        self.tops[name].fn.params.update(params)

    def to_proto(self) -> Any:
        """A ``NetParameter`` with all layers that are needed to compute what was assigned."""
        names: dict[Any, str] = {top: name for name, top in self.tops.items()}
        numbers: Counter[str] = Counter()
        layers: OrderedDict[Function, Any] = OrderedDict()
        for top in self.tops.values():
            top._to_proto(layers, names, numbers)
        return _net(layers)


class UnknownBlobError(KeyError, AttributeError):
    """No blob of that name was assigned: pycaffe raises a KeyError, Python wants an AttributeError."""


class Layers:
    """Gives a function for each layer type: ``Layers().Convolution(bottom, kernel_size=3)`` is its top."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def make(*args: Any, **kwargs: Any) -> Any:
            made = Function(name, args, kwargs)
            return {0: made, 1: made.tops[0] if made.tops else made}.get(made.ntop, made.tops)

        return make


class Parameters:
    """Gives the constants of parameter messages: ``Parameters().Pooling.MAX``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(caffe_pb2, name + _SUFFIX)


_param_names = param_name_dict()
layers = Layers()
params = Parameters()
