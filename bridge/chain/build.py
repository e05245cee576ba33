"""A net as a :class:`chainer.Chain` that computes, and trains, as Caffe does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from bridge.chain import functions as F
from bridge.chain.functions import chainer
from bridge.chain.names import escape
from bridge.errors import ModelError, UnsupportedLayerError, UsageError
from bridge.layers.base import CaffeLayer
from bridge.schema import Blob, Blobs, Layer, Net, Shape


class _Home(NamedTuple):
    """Where an array is: the name of a child, the name of its array, and the shape that is wanted."""

    child: str
    array: str
    shape: Shape


class LayerLink(chainer.Link):
    """The arrays of one layer, in Caffe's layout, and its forward computation.

    The weight is ``W`` and the bias ``b``, as in Chainer's own links; other roles have
    their own names (``gamma``, ``mean``, ...). Running statistics are persistent values.

    Attributes:
        layer: The typed layer, without its blobs.
        frozen: Whether statistics are kept as they are, in training mode too.
    """

    def __init__(self, layer: Layer, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.layer = dataclasses.replace(layer, blobs=Blobs())
        self.frozen = False
        for role, array in arrays.items():
            name = array_name(layer, role)
            if role in layer.statistics:
                self.add_persistent(name, array)
            else:
                with self.init_scope():
                    setattr(self, name, chainer.Parameter(array))

    def forward(self, *x: Any) -> Any:
        """The layer's tops for its bottoms, as variables."""
        return self.layer.to_chainer(F, self, *x)


class _Borrowed:
    """Arrays for a layer that shares some or all of them with other layers."""

    def __init__(self, chain: NetChain, homes: Mapping[str, _Home]) -> None:
        self._chain, self._homes = chain, homes

    @property
    def xp(self) -> Any:
        """The array module of the device that the chain is on."""
        return self._chain.xp

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._homes:
            raise AttributeError(name)
        return self._chain.at(self._homes[name])


class NetChain(chainer.Chain):
    """A trainable chain with one child per layer that has blobs, named after the layer.

    Names that Chainer refuses are escaped (:mod:`bridge.chain.names`); :meth:`child`
    finds a layer's child by the layer's own name.

    Attributes:
        net_inputs, net_outputs: Names of the input and output blobs.
    """

    def __init__(self, net: Net, *, seed: int | None = None) -> None:
        super().__init__()
        self.net_inputs = tuple(net.inputs)
        self.net_outputs = net.outputs
        self._layers = [dataclasses.replace(layer, blobs=Blobs()) for layer in net.layers]
        self._homes: list[dict[str, _Home]] = []
        known: dict[int, _Home] = {}
        shapes = _bottom_shapes(net)
        every = [_arrays(layer, shapes, index, seed) for index, layer in enumerate(net.layers)]
        for layer, arrays in zip(net.layers, every, strict=True):  # all alive: what is shared is told by identity
            self._homes.append(self._adopt(layer, arrays, known))

    def _adopt(self, layer: Layer, arrays: Mapping[str, Blob], known: dict[int, _Home]) -> dict[str, _Home]:
        """Make the layer's child, of those arrays that no earlier layer has; say where each array is."""
        own = {role: blob for role, blob in arrays.items() if id(blob.origin) not in known}
        child = escape(layer.name)
        while child in self._children:
            child += "%"  # a second layer of that name
        if own:
            copies = {role: np.array(blob.numpy(), dtype=np.float32) for role, blob in own.items()}
            self.add_link(child, LayerLink(layer, copies))
        for role, blob in own.items():
            known[id(blob.origin)] = _Home(child, array_name(layer, role), blob.shape)
        return {
            array_name(layer, role): known[id(blob.origin)]._replace(shape=blob.shape) for role, blob in arrays.items()
        }

    def child(self, layer: str) -> Any:
        """The child of a layer, by the layer's name.

        Raises:
            KeyError: The layer has none.
        """
        return self[escape(layer)]

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Compute the net.

        Args:
            args: The input blobs in order, or one dict by name.
            inputs: Input blobs by name.

        Returns:
            The output variable, or a dict by name where there are several.
        """
        fed = dict(args[0]) if args and isinstance(args[0], Mapping) else dict(zip(self.net_inputs, args, strict=False))
        values = self.run({**fed, **inputs})
        outputs = {name: values[name] for name in self.net_outputs if name in values}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def run(self, inputs: Mapping[str, Any], *, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """All blobs after the layers ``start`` to ``stop`` ran, by name; in-place layers overwrite.

        Args:
            inputs: Arrays or variables by blob name.
            start: The first layer to run.
            stop: The layer behind the last one, as in a slice.
        """
        values = {name: chainer.as_variable(value) for name, value in inputs.items()}
        for index, tops in self.steps(values, start, stop):
            values.update(zip(self._layers[index].tops, tops, strict=False))
        return values

    def steps(
        self, values: Mapping[str, Any], start: int = 0, stop: int | None = None
    ) -> Iterable[tuple[int, tuple[Any, ...]]]:
        """Run layer after layer; yields each index with the tops, and reads ``values`` as it goes."""
        for index in range(*slice(start, stop).indices(len(self._layers))):
            layer = self._layers[index]
            if getattr(layer, "input_shapes", None) is not None:
                yield index, tuple(values[top] for top in layer.tops if top in values)
                continue
            _require(layer, values)
            made = layer.to_chainer(F, self._link(index), *(values[bottom] for bottom in layer.bottoms))
            yield index, made if isinstance(made, tuple) else (made,)

    def loss(self, inputs: Mapping[str, Any]) -> Any:
        """The net's loss: what every layer adds to it, by ``loss_weight``.

        Args:
            inputs: Arrays or variables by blob name.

        Raises:
            ModelError: No layer of the net has a loss weight.

        Source: ``Net::ForwardFromTo``.
        """
        values = {name: chainer.as_variable(value) for name, value in inputs.items()}
        parts = []
        for index, tops in self.steps(values):
            layer = self._layers[index]
            values.update(zip(layer.tops, tops, strict=False))
            weights = getattr(layer, "loss_weights", ())
            parts += [F.sum(top) * weight for top, weight in zip(tops, weights, strict=False) if weight]
        if not parts:
            raise ModelError("the net has no loss", hint="take the prototxt that it was trained with")
        return sum(parts[1:], start=parts[0])

    def _link(self, index: int) -> Any:
        """What the layer finds its arrays in: its child, unless some of them are another layer's."""
        homes = self._homes[index]
        children = {home.child for home in homes.values()}
        own = all(name == home.array and home.shape == self.holder(home).shape for name, home in homes.items())
        if len(children) == 1 and own:
            return self[next(iter(children))]
        return _Borrowed(self, homes)

    def layer_names(self) -> list[str]:
        """The names of the net's layers, in order."""
        return [layer.name for layer in self._layers]

    def layer_tops(self) -> list[tuple[str, ...]]:
        """The names of each layer's tops, in order."""
        return [layer.tops for layer in self._layers]

    def roles(self, index: int) -> list[str]:
        """The roles of a layer's arrays, in Caffe's order."""
        layer = cast(CaffeLayer, self._layers[index])  # build_chain takes no others
        back = {array_name(layer, role): role for role in layer.roles(len(self._homes[index]))}
        return [back[name] for name in self._homes[index]]

    def array(self, index: int, role: str) -> Any:
        """The array (parameter or statistic) of a layer's role, wherever it lives."""
        return self.at(self.home(index, role))

    def home(self, index: int, role: str) -> _Home:
        """Where the array of a layer's role is."""
        return self._homes[index][array_name(self._layers[index], role)]

    def holder(self, home: _Home) -> Any:
        """The array at that home, as it is kept there."""
        return getattr(self[home.child], home.array)

    def at(self, home: _Home) -> Any:
        """The array at that home, in the shape that the layer which asks has for it."""
        array = self.holder(home)
        return array if array.shape == home.shape else F.reshape(array, home.shape)


def build_chain(net: Net, *, seed: int | None = None) -> NetChain:
    """A trainable chain of the whole net.

    Layers without stored blobs get new ones by their fillers, as Caffe would.

    Args:
        net: The net.
        seed: For the fillers.

    Raises:
        UnsupportedLayerError: Layers that Chainer cannot run; names all of them.
        ModelError: The net does not fit together.
    """
    missing = [f"{layer.label}: {reason}" for layer in net.layers if (reason := _problem(layer))]
    if missing:
        raise UnsupportedLayerError("; ".join(missing), where=net.where)
    return NetChain(net, seed=seed)


def array_name(layer: Layer, role: str) -> str:
    """The attribute of a layer's link that holds the role's array."""
    return str(getattr(layer, "chainer_params", {}).get(role, role))


def _problem(layer: Layer) -> str:
    if layer.uncovered:
        return layer.uncovered
    lowered = type(layer).to_chainer is not Layer.to_chainer or hasattr(layer, "input_shapes")
    return "" if lowered else layer.reason()


def _require(layer: Layer, values: Mapping[str, Any]) -> None:
    for name in layer.bottoms:
        if name not in values:
            raise UsageError(f"blob '{name}' was neither given nor computed", where=layer.label)


def _bottom_shapes(net: Net) -> list[tuple[Shape, ...]] | None:
    """The shapes of each layer's bottoms, or ``None`` where the inputs' are not known."""
    if any(shape is None for shape in net.inputs.values()):
        return None
    known: dict[str, Shape] = {}
    result = []
    for layer, tops in zip(net.layers, net.infer(), strict=True):
        result.append(tuple(known[bottom] for bottom in layer.bottoms if bottom in known))
        known.update(zip(layer.tops, tops, strict=False))
    return result


def _arrays(layer: Layer, shapes: list[tuple[Shape, ...]] | None, index: int, seed: int | None) -> dict[str, Blob]:
    """The layer's stored blobs, or new ones by its fillers."""
    if layer.blobs or shapes is None:
        if shapes is None and getattr(layer, "roles", lambda _: ())(0) and not layer.blobs:
            raise ModelError("has no blobs, and the shape of its input is not known", where=layer.label)
        return dict(layer.blobs.entries())
    from bridge.chain.fillers import filled

    wanted = layer.blob_shapes(*shapes[index])
    return {
        role: Blob.of(filled(layer, role, shape, seed=None if seed is None else seed + index))
        for role, shape in wanted.items()
    }
