"""A net as a :class:`chainer.Chain` that computes, and trains, as Caffe does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from bridge.caffe_files.fields import refuse_unknown_fields
from bridge.caffe_files.structure import check_tops
from bridge.chain.fillers import FillerInitializer, filled
from bridge.chain.functions import F, chainer
from bridge.chain.functions.helper_parts import fast_way, is_fast
from bridge.chain.functions.helper_tail import NO_TAIL, Tail, with_tail
from bridge.chain.names import escape
from bridge.errors import ModelError, NotFoundError, UnsupportedLayerError, UsageError
from bridge.layers.base import CaffeLayer
from bridge.schema import Blob, Blobs, Layer, Net, Shape, count


class _Home(NamedTuple):
    """Where an array is: the name of a child and of its array, and the shape that its layer has for it."""

    child: str
    array: str
    shape: Shape


class LayerLink(chainer.Link):
    """The arrays of one layer, in Caffe's layout, and its forward computation.

    The weight is ``W`` and the bias ``b``, as in Chainer's own links; other roles have
    their own names (``gamma``, ``mean``, ...). Running statistics are persistent values.
    Where a parameter is to be initialized anew, the layer's filler does it.

    Attributes:
        layer: The typed layer, without its blobs.
        frozen: Whether statistics are kept as they are, in training mode too.
    """

    def __init__(self, layer: Layer, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.layer = layer
        self.frozen = False
        for role, array in arrays.items():
            if role in layer.statistics:
                self.add_persistent(layer.array_name(role), array)
                continue
            with self.init_scope():
                param = chainer.Parameter(array)
                param.initializer = FillerInitializer(
                    cast(CaffeLayer, layer), role
                )  # Chainer would keep the array for that
                setattr(self, layer.array_name(role), param)

    def forward(self, *x: Any) -> Any:
        """The layer's tops for its bottoms, as variables."""
        return self.layer.to_chainer(F, self, *x)


class _Borrowed:
    """Stands for the link of a layer that shares some or all of its arrays with other layers."""

    def __init__(self, chain: NetChain, homes: Mapping[str, _Home]) -> None:
        vars(self).update(_chain=chain, _homes=homes)

    @property
    def xp(self) -> Any:
        """The array module of the device that the chain is on."""
        return self._chain.xp

    @property
    def frozen(self) -> bool:
        """Whether any of the links that hold the arrays is."""
        return any(self._chain[home.child].frozen for home in self._homes.values())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._homes:
            raise AttributeError(name)
        home = self._homes[name]
        array = getattr(self._chain[home.child], home.array)
        return array if array.shape == home.shape else array.reshape(home.shape)

    def __setattr__(self, name: str, value: Any) -> None:
        home = self._homes[name]
        owner = self._chain[home.child]
        setattr(owner, home.array, value.reshape(getattr(owner, home.array).shape))


class NetChain(chainer.Chain):
    """A trainable chain with one child per layer that has blobs, named after the layer.

    Names that Chainer refuses are escaped (:mod:`bridge.chain.names`); :meth:`child`
    finds a layer's child by the layer's own name. A parameter that several layers share
    belongs to the child of the first. The chain holds copies of the net's blobs, as float32.

    Attributes:
        net_inputs: Names of the input blobs.
        net_outputs: Names of the output blobs.
        exact: Whether a training step has Caffe's bits on the CPU, as a replay of a Caffe run needs them. Otherwise
            what is trained is computed the fast way (:mod:`bridge.chain.functions.helper_parts`), and values differ by
            about 1e-6 of the largest. What is frozen below it, and a pass in test mode or without gradients, always has
            Caffe's bits.
    """

    exact = False

    def __init__(self, net: Net, *, seed: int | None = None) -> None:
        super().__init__()
        self.net_inputs = tuple(net.inputs)
        self.net_outputs = net.outputs
        self._layers = [layer.changed(blobs=Blobs()) for layer in net.layers]
        self._gives_inputs = [layer.is_input for layer in self._layers]
        self._homes: list[dict[str, _Home]] = []
        self._own: list[str | None] = []
        known: dict[int, _Home] = {}
        seen: Counter[str] = Counter()
        every = new_blobs(net, seed)  # all alive: what is shared is told by identity
        for layer, blobs in zip(self._layers, every, strict=True):
            seen[layer.name] += 1
            self._homes.append(self._adopt(layer, escape(layer.name, seen[layer.name]), blobs, known))
            self._own.append(self._own_child(layer, self._homes[-1]))

    def _adopt(self, layer: Layer, child: str, blobs: Mapping[str, Blob], known: dict[int, _Home]) -> dict[str, _Home]:
        """Make the layer's child, of those arrays that no earlier layer has; say by role where each array is."""
        own = {role: blob for role, blob in blobs.items() if id(blob.origin) not in known}
        if own:
            with np.errstate(all="ignore"):  # float64 of a file may be more than float32 can hold
                copies = {role: np.array(blob.numpy(), dtype=np.float32, order="C") for role, blob in own.items()}
            self.add_link(child, LayerLink(layer, copies))
        for role, blob in own.items():
            known.setdefault(id(blob.origin), _Home(child, layer.array_name(role), blob.shape))
        return {role: known[id(blob.origin)]._replace(shape=blob.shape) for role, blob in blobs.items()}

    def child(self, layer: str) -> Any:
        """The child of a layer, by the layer's name; of several layers of that name the first one's.

        Raises:
            NotFoundError: No layer of that name has parameters or statistics of its own.
        """
        name = escape(layer)
        if name not in self._children:
            raise NotFoundError(f"layer '{layer}' has no arrays of its own", where=type(self).__name__)
        return self[name]

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Compute the net.

        Args:
            args: The input blobs in order, or one dict by name.
            inputs: Input blobs by name.

        Returns:
            The output variable, or a dict by name where there are several.

        Raises:
            UsageError: There are more inputs than the net has, or one is missing.
        """
        values = self.run(self._fed(args, inputs))
        outputs = {name: values[name] for name in self.net_outputs if name in values}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _fed(self, args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
        if len(args) == 1 and isinstance(args[0], Mapping):
            return {**args[0], **inputs}
        if len(args) > len(self.net_inputs):
            raise UsageError(f"got {len(args)} inputs", expected=f"{', '.join(self.net_inputs) or 'none'}")
        return {**dict(zip(self.net_inputs, args, strict=False)), **inputs}

    def run(self, inputs: Mapping[str, Any], *, start: int = 0, stop: int | None = None) -> dict[str, Any]:
        """All blobs after the layers ``start`` to ``stop`` ran, by name; in-place layers overwrite.

        Args:
            inputs: Arrays or variables by blob name.
            start: The first layer to run.
            stop: The layer behind the last one, as in a slice.

        Raises:
            UsageError: A blob is needed that was neither given nor computed.
        """
        values = {name: chainer.as_variable(value) for name, value in inputs.items()}
        with fast_way(self._is_fast()):
            for index, tops in self._groups(values, start, stop):
                values.update(zip(self._layers[index].tops, tops, strict=False))
        return values

    def _is_fast(self) -> bool:
        """Whether this is a training step; exporters, which look at the graph, say that they recompute."""
        config = chainer.config
        return bool(config.train and config.enable_backprop and not config.in_recomputing) and not self.exact

    def _groups(self, values: Mapping[str, Any], start: int, stop: int | None) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """As :meth:`steps`; layers that are computed with the one before give no values of their own."""
        indexes = range(*slice(start, stop).indices(len(self._layers)))
        index = indexes.start
        while index in indexes:
            tail, end = self._tail(index, indexes.stop, values)
            for _, tops in self.steps(values, index, index + 1, tail):
                yield index, tops
            index = end

    def _tail(self, index: int, stop: int, values: Mapping[str, Any]) -> tuple[Tail, int]:
        """What can be computed with a layer of those that work in place on its top, and the layer behind them."""
        layer, tail, end = self._layers[index], NO_TAIL, index + 1
        own = [self.array(index, role) for role in self._homes[index]]
        params = [array for array in own if isinstance(array, chainer.Parameter)]
        if not layer.takes_cut or not is_fast(_find(values, layer.bottoms[0], layer), *params):
            return tail, end
        while end < stop and not tail.positive and self._layers[end].bottoms == self._layers[end].tops == layer.tops:
            following = self._layers[end].chainer_tail(F, self._link(end))
            if following is None or not (layer.takes_tail or following.only_cuts):
                break
            tail, end = tail.then(following), end + 1
        return tail, end

    def steps(
        self, values: Mapping[str, Any], start: int = 0, stop: int | None = None, tail: Tail = NO_TAIL
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Run layer after layer; yields each index with the tops, and reads ``values`` as it goes.

        The tops have Caffe's bits, where the net is not run by :meth:`run`. Each layer is computed with the ``tail``.
        """
        functions = F if tail is NO_TAIL else with_tail(F, tail)
        for index in range(*slice(start, stop).indices(len(self._layers))):
            layer = self._layers[index]
            if self._gives_inputs[index]:
                given = all(top in values for top in layer.tops)
                yield index, tuple(values[top] for top in layer.tops) if given else ()  # what is missing may go unread
                continue
            bottoms = [_find(values, bottom, layer) for bottom in layer.bottoms]
            made = layer.to_chainer(functions, self._link(index), *bottoms)
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
        with fast_way(self._is_fast()):
            for index, tops in self._groups(values, 0, None):
                layer = self._layers[index]
                values.update(zip(layer.tops, tops, strict=False))
                parts += [F.sum(top) * weight for top, weight in zip(tops, layer.loss_weights, strict=False) if weight]
        if not parts:
            raise ModelError("the net has no loss", hint="take the prototxt that it was trained with")
        return sum(parts[1:], start=parts[0])

    def _own_child(self, layer: Layer, homes: Mapping[str, _Home]) -> str | None:
        """The child that has all of a layer's arrays, by the layer's own names and in its shapes, if there is one."""
        children = {home.child for home in homes.values()}
        if len(children) != 1:
            return None
        child = children.pop()
        fits = all(
            home.array == layer.array_name(role) and getattr(self[child], home.array).shape == home.shape
            for role, home in homes.items()
        )
        return child if fits else None

    def _link(self, index: int) -> Any:
        """What the layer finds its arrays in: its child, unless some of them are another layer's."""
        own = self._own[index]
        if own is not None:
            return self[own]
        return _Borrowed(self, {self._layers[index].array_name(r): home for r, home in self._homes[index].items()})

    def layer_names(self) -> list[str]:
        """The names of the net's layers, in order."""
        return [layer.name for layer in self._layers]

    def layer_tops(self) -> list[tuple[str, ...]]:
        """The names of each layer's tops, in order."""
        return [layer.tops for layer in self._layers]

    def roles(self, index: int) -> list[str]:
        """The roles of a layer's arrays, in Caffe's order."""
        return list(self._homes[index])

    def array(self, index: int, role: str) -> Any:
        """The array (parameter or statistic) of a layer's role, wherever it lives."""
        home = self._homes[index][role]
        return getattr(self[home.child], home.array)

    def shape(self, index: int, role: str) -> Shape:
        """The shape that the layer has for it; layers may share an array under several."""
        return self._homes[index][role].shape

    def holder(self, index: int, role: str) -> Any:
        """The child in which it lives: the layer's own, or that of a layer that it shares the array with."""
        return self[self._homes[index][role].child]


def build_chain(net: Net, *, seed: int | None = None) -> NetChain:
    """A trainable chain of the whole net.

    Layers without stored blobs get new ones by their fillers, as Caffe would.

    Args:
        net: The net.
        seed: For the fillers.

    Raises:
        UnknownFieldError: A layer has a field that nothing reads and that may change what it computes.
        UnsupportedLayerError: Layers that Chainer cannot run; names all of them.
        ModelError: The net does not fit together.
    """
    check_tops(net)
    refuse_unknown_fields(net)
    missing = [f"{layer.label}: {reason}" for layer in net.layers if (reason := _problem(layer))]
    if missing:
        raise UnsupportedLayerError("; ".join(missing), where=net.where)
    return NetChain(net, seed=seed)


def _problem(layer: Layer) -> str:
    if layer.uncovered:
        return layer.uncovered
    return "" if layer.has_chainer else layer.reason()


def _find(values: Mapping[str, Any], name: str, layer: Layer) -> Any:
    if name not in values:
        raise UsageError(f"blob '{name}' was neither given nor computed", subject=layer.label)
    return values[name]


def new_blobs(net: Net, seed: int | None) -> list[dict[str, Blob]]:
    """Each layer's stored blobs by role, or new ones by its fillers; a shared parameter is one blob."""
    shared: dict[str, Blob] = {}
    return [
        _own_blobs(layer, bottoms, shared, None if seed is None else seed + index)
        for index, (layer, bottoms) in enumerate(zip(net.layers, _bottom_shapes(net), strict=True))
    ]


def _own_blobs(
    layer: Layer, bottoms: tuple[Shape, ...] | None, shared: dict[str, Blob], seed: int | None
) -> dict[str, Blob]:
    made = dict(layer.blobs.entries())
    if not made and bottoms is None and layer.roles(0):
        raise ModelError("has no blobs, and the shape of its input is not known", subject=layer.label)
    wanted = {} if made or bottoms is None else layer.blob_shapes(*bottoms)
    for place, (role, shape) in enumerate(wanted.items()):
        name = layer.param(place).name
        if name in shared and shared[name].size == count(shape):
            made[role] = shared[name].reshaped(shape)
        else:
            made[role] = Blob.of(filled(cast(CaffeLayer, layer), role, shape, seed=seed))
        if name:
            shared.setdefault(name, made[role])
    return made


def _bottom_shapes(net: Net) -> Sequence[tuple[Shape, ...] | None]:
    """The shapes of each layer's bottoms, or ``None`` for all where the inputs' are not known."""
    if any(shape is None for shape in net.inputs.values()):
        return [None] * len(net)
    known: dict[str, Shape] = {}
    result = []
    for layer, tops in zip(net.layers, net.infer(), strict=True):
        result.append(tuple(known[bottom] for bottom in layer.bottoms if bottom in known))
        known.update(zip(layer.tops, tops, strict=False))
    return result
