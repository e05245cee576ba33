"""Layer by layer in Chainer, forward and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from bridge.caffe.blob import Blob
from bridge.caffe.layer import Node, TypedNode
from bridge.caffe.state import STATE, draw_seed
from bridge.chain.devices import to_host
from bridge.chain.functions import F, chainer
from bridge.errors import UnsupportedLayerError
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import LayerArrays


class Link:
    """The arrays of one layer under the names that its Chainer form looks for.

    Parameters are variables on the blobs' own memory. What a layer assigns, running statistics, goes
    into that memory.
    """

    frozen = False
    xp: Any
    _named: dict[str, tuple[Blob, bool]]

    def __init__(self, node: TypedNode, xp: Any) -> None:
        named = {
            node.typed.array_name(role): (blob, role in node.typed.statistics)
            for role, blob in zip(node.roles, node.layer.blobs, strict=True)
        }
        made = {
            name: xp.asarray(blob.values()) if fixed else chainer.Variable(xp.asarray(blob.values()))
            for name, (blob, fixed) in named.items()
        }
        vars(self).update(_named=named, xp=xp, **made)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the layer has no array '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        blob, _ = self._named[name]
        blob.values()[...] = _host(value).reshape(blob.dims)
        vars(self)[name] = value

    def variables(self) -> list[tuple[Any, Blob]]:
        """Each parameter that learns, with its blob; in Caffe's order, ``None`` for statistics."""
        return [(None if fixed else vars(self)[name], blob) for name, (blob, fixed) in self._named.items()]


class _Trace(NamedTuple):
    """What a forward computation leaves for the way back."""

    bottoms: list[Any]
    tops: list[Any]
    link: Link
    shapes: tuple[Shape, ...]


class ChainerEngine:
    """Computes single layers.

    Args:
        nodes: The net's layers.
        phase: ``TRAIN`` or ``TEST``.
    """

    def __init__(self, nodes: Sequence[Node], phase: str) -> None:
        self._nodes, self._train = nodes, phase == "TRAIN"
        self._traces: dict[int, _Trace] = {}

    def forward(self, index: int, *, keep: bool) -> None:
        """Run a layer.

        Args:
            index: The layer.
            keep: Whether to keep what the way back needs.
        """
        node = self._typed(index)
        trace = self._trace(node, keep)
        if keep:
            self._traces[index] = trace
        for top, made in zip(node.tops, trace.tops, strict=False):
            array = _host(made.array)
            top.set_shape(array.shape)
            if _own(array) and not made.requires_grad:
                top.data_memory.put(array)
            else:
                top.values()[...] = array

    def _typed(self, index: int) -> TypedNode:
        node = self._nodes[index]
        if not isinstance(node, TypedNode) or not node.typed.has_chainer:
            reason = node.typed.reason() if isinstance(node, TypedNode) else "it is not a layer type that is known"
            raise UnsupportedLayerError(f"Chainer cannot run it: {reason}", where=node.label)
        return node

    def _trace(self, node: TypedNode, keep: bool) -> _Trace:
        in_place = {id(top.data_memory) for top in node.tops}
        xp = _array_module()
        bottoms = []
        for bottom, wanted in zip(node.bottoms, node.propagate, strict=True):
            array = bottom.values().copy() if id(bottom.data_memory) in in_place else bottom.values()
            bottoms.append(chainer.Variable(xp.asarray(array), requires_grad=keep and wanted))
        link = Link(node, xp)
        with _config(self._train, keep), _own_numbers(self._train and node.typed.draws_random):
            made = node.typed.to_chainer(F, cast("LayerArrays", link), *bottoms)
        tops = [*made] if isinstance(made, tuple) else [made]
        return _Trace(bottoms, tops, link, tuple(bottom.dims for bottom in node.bottoms))

    def backward(self, index: int) -> None:
        """Go back through a layer: sets the bottoms' diff, and adds to the parameters'."""
        node = self._typed(index)
        trace = self._traces.get(index)
        if trace is None or trace.shapes != tuple(bottom.dims for bottom in node.bottoms):
            trace = self._trace(node, keep=True)
        wanted = [(x, blob, False) for x, blob in zip(trace.bottoms, node.bottoms, strict=True) if x.requires_grad]
        learned = zip(trace.link.variables(), node.param_propagate, strict=True)
        wanted += [(x, blob, True) for (x, blob), learns in learned if learns and x is not None]
        gradients = self._gradients(node, trace, [x for x, _, _ in wanted])
        for (_, blob, adds), gradient in zip(wanted, gradients, strict=True):
            if adds:
                if gradient is not None:
                    blob.gradient()[...] += gradient.reshape(blob.dims)
            else:
                blob.gradient()[...] = 0 if gradient is None else gradient.reshape(blob.dims)

    def _gradients(self, node: TypedNode, trace: _Trace, wanted: Sequence[Any]) -> list[np.ndarray | None]:
        """The gradient of each variable, for the diffs that are in the layer's tops."""
        xp = _array_module()
        pairs = [
            (made, xp.asarray(top.gradient().astype(made.dtype).reshape(made.shape)))
            for made, top in zip(trace.tops, node.tops, strict=False)
        ]
        passed: dict[int, Any] = {}  # tops that are a bottom itself
        for made, gradient in pairs:
            if any(made is x for x in wanted):
                passed[id(made)] = passed.get(id(made), 0) + gradient
        through = [(made, g) for made, g in pairs if made.requires_grad and not any(made is x for x in wanted)]
        if through:
            tops, given = zip(*through, strict=True)
            with _config(self._train, True):
                found = chainer.grad(tops, [*wanted], [chainer.Variable(g) for g in given])
        else:
            found = [None] * len(wanted)
        arrays = [None if g is None else g.array for g in found]
        summed = [_sum(array, passed.get(id(x))) for array, x in zip(arrays, wanted, strict=True)]
        return [None if array is None else _host(array) for array in summed]

    def forget(self) -> None:
        """Drop what forward computations left."""
        self._traces.clear()


def _sum(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


@contextlib.contextmanager
def _config(train: bool, keep: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in (("train", train), ("enable_backprop", keep), ("type_check", False)):
            stack.enter_context(chainer.using_config(name, value))
        if STATE.gpu:
            stack.enter_context(chainer.get_device(f"@cupy:{STATE.device}"))
        yield


@contextlib.contextmanager
def _own_numbers(draws: bool) -> Iterator[None]:
    """Let dropout, which draws from NumPy's global generator, draw by Caffe's seed; the generator stays as it was."""
    if not draws:
        yield
        return
    state = np.random.get_state()
    np.random.seed(draw_seed() % (1 << 32))
    try:
        yield
    finally:
        np.random.set_state(state)


def _array_module() -> Any:
    return chainer.get_device(f"@cupy:{STATE.device}").xp if STATE.gpu else np


def _host(array: Any) -> np.ndarray:
    return to_host(getattr(array, "array", array))


def _own(array: np.ndarray) -> bool:
    """Whether nobody else has the array's memory."""
    return array.base is None and array.flags.c_contiguous and array.dtype == np.float32
