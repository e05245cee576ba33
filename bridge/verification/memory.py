"""Verification of what is in memory: a net instead of files, a chain of the user's instead of a second model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.errors import UsageError
from bridge.schema import Net, RawNet, Shape, count
from bridge.verification.outputs import Side
from bridge.verification.results import WeightsResult
from bridge.verification.segments import Place, sources
from bridge.verification.weights import Files, Loaded, compare_readers


@dataclass(frozen=True)
class HeldNet:
    """A net in memory in the place of :class:`~bridge.verification.weights.Files`."""

    net: Net
    definition: None = None
    kind: str = "net"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The net's name."""
        return (self.net.where,)

    @property
    def weights(self) -> str:
        """The net's name."""
        return self.net.where

    def read(self, reader: str = "auto", definition: object = None) -> Loaded:
        """The net, as if a reader had delivered it."""
        return Loaded(RawNet(self.net.name, (), source=self.net.where, complete=True), self.net, None)


@dataclass(frozen=True)
class HeldChain:
    """A chain of the user's in the place of a second model; or a method of one, such as ``model.features``."""

    call: Any
    kind: str = "chain"

    @property
    def chain(self) -> Any:
        """The chain itself."""
        return getattr(self.call, "__self__", self.call)

    @property
    def names(self) -> tuple[str, ...]:
        """The class of the chain."""
        return (self.weights,)

    @property
    def weights(self) -> str:
        """The class of the chain."""
        return type(self.chain).__name__


def is_chain(value: object) -> bool:
    """Whether it is a link of Chainer's, or a method of one; Chainer is not imported for that."""
    owner = getattr(value, "__self__", value)
    return callable(value) and hasattr(owner, "namedparams") and hasattr(owner, "links")


def held_net(files: Sequence[Any]) -> HeldNet | None:
    """The one net among files, if it is one.

    Raises:
        UsageError: There is more than the net.
    """
    nets = [file for file in files if isinstance(file, Net)]
    if nets and len(files) > 1:
        raise UsageError("a net in memory is verified alone", hint="verify(net, against=OTHER) compares two")
    return HeldNet(nets[0]) if nets else None


def read_all(files: Files | HeldNet, readers: tuple[str, ...] | None) -> tuple[Loaded, list[WeightsResult], list[str]]:
    """A model with what its readers deliver, and remarks; a net in memory has been read."""
    return (files.read(), [], []) if isinstance(files, HeldNet) else compare_readers(files, readers)


def chain_side(held: HeldChain, net: Net, inputs: Mapping[str, np.ndarray], remarks: list[str]) -> Side:
    """What a chain computes where the net has layers of the same names: the links' results, and what they were given.

    Args:
        held: The chain.
        net: The net.
        inputs: The net's inputs.
        remarks: Receives a line for each layer that has no link.

    Raises:
        UsageError: The chain does not run on the net's inputs, or none of its links belongs to a layer.
    """
    from bridge.chain.build import NetChain

    values = {Place(-1, place): inputs[name] for place, name in enumerate(net.inputs)}
    if isinstance(held.chain, NetChain):
        return Side(held.weights, {**values, **dict(_built(held.chain, inputs))})
    from bridge.chain.against import layers_of_links, run_of

    run = run_of(held.call, held.chain, [inputs[name] for name in net.inputs], net.where)
    homes = layers_of_links(net, held.chain)
    reads, shapes = sources(net), _shapes(net, inputs)
    for call in reversed(run.calls):  # the first call of a link is the one that counts
        for index, last in homes.get(call.path, ()):
            _place(values, shapes, dict(zip(reads[index], call.inputs, strict=False)), keep=True)
            _place(values, shapes, {Place(last, 0): call.outputs[0]} if call.outputs else {})
    if held.call is held.chain:  # a method may return anything
        _place(values, shapes, _results(run.result, net), keep=True)
    without = [layer.name for index, layer in enumerate(net.layers) if layer.blobs and not _seen(index, homes)]
    if len(homes) == 0:
        raise UsageError(
            "no link of the chain belongs to a layer", where=held.weights, hint="names, or order, must match"
        )
    remarks += [f"{held.weights} has no link for layer '{name}'" for name in without]
    return Side(held.weights, values)


def _seen(index: int, homes: Mapping[str, list[tuple[int, int]]]) -> bool:
    return any(first <= index <= last for places in homes.values() for first, last in places)


def _shapes(net: Net, inputs: Mapping[str, np.ndarray]) -> dict[Place, Shape]:
    tops = net.infer({name: array.shape for name, array in inputs.items()})
    return {Place(index, top): shape for index, shapes in enumerate(tops) for top, shape in enumerate(shapes)}


def _built(chain: Any, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[Place, np.ndarray]]:
    """The tops of a chain that was built from the net."""
    from bridge.chain.against import built_tops

    for index, arrays in enumerate(built_tops(chain, inputs)):
        yield from ((Place(index, top), array) for top, array in enumerate(arrays))


def _place(
    values: dict[Place, Any], shapes: Mapping[Place, Shape], found: Mapping[Place, Any], *, keep: bool = False
) -> None:
    """Note values in the shapes that the net has for them."""
    from bridge.chain.devices import to_host

    for place, variable in found.items():
        expected = shapes.get(place)
        if place.layer < 0 or expected is None or (keep and place in values):
            continue
        array = np.asarray(to_host(getattr(variable, "array", variable)), np.float32)
        values[place] = array.reshape(expected) if array.size == count(expected) else array


def _results(result: Any, net: Net) -> dict[Place, Any]:
    """What the chain returned: by the names of the net's outputs, or its only output."""
    last = net.flow.last
    if isinstance(result, Mapping):
        return {last[name]: value for name, value in result.items() if name in net.outputs}
    if len(net.outputs) == 1 and hasattr(result, "array"):
        return {last[net.outputs[0]]: result}
    return {}
