"""The engine pycaffe: the real Caffe, in another interpreter."""

from __future__ import annotations

import dataclasses
import importlib
import io
from typing import Any

import numpy as np

from bridge import prototxt
from bridge.engines import Arrays, Tops
from bridge.errors import MissingExtraError
from bridge.message import Message
from bridge.schema import Net


def missing() -> MissingExtraError | None:
    """Why it does not work here; ``None`` if it may."""
    problem: MissingExtraError | None = _backend().missing()
    return problem


class Engine:
    """See :class:`bridge.engines.Engine`.

    Args:
        net: The net.
        python: Command of the interpreter that has Caffe.
        timeout: Seconds that one request may take.
    """

    def __init__(self, net: Net, *, python: str | None = None, timeout: float | None = None) -> None:
        self._net = net
        self._options = {name: value for name, value in (("python", python), ("timeout", timeout)) if value}

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        with self._session(inputs) as session:
            found: dict[str, np.ndarray] = session.forward(inputs)
        return found

    def tops(self, inputs: Arrays) -> list[Tops]:
        with self._session(inputs) as session:
            written = session.forward_by_layer(inputs)
        names = [layer.name for layer in self._net.layers]
        while [name for name, _ in written[: len(names)]] != names:  # layers that stand for bare inputs come first
            written = written[1:]
        return [
            tuple(found.get(top) for top in layer.tops)
            for layer, (_, found) in zip(self._net.layers, written, strict=True)
        ]

    def _session(self, inputs: Arrays) -> Any:
        weights = weights_of(self._net) if any(layer.blobs for layer in self._net.layers) else None
        return _backend().Session(definition_of(self._net, inputs), weights, **self._options)


def definition_of(net: Net, inputs: Arrays) -> str:
    """The net as a prototxt, with an ``Input`` layer for each input that none declares."""
    message = net.to_message()
    declared = {top for layer in net.layers if hasattr(layer, "input_shapes") for top in layer.tops}
    layers = message.all("layer")
    message.set("layer")
    for name, array in inputs.items():
        if name not in declared:
            shape = Message(shape=Message(dim=list(map(int, array.shape))))
            message.add("layer", Message(name=f"input {name}", type="Input", top=name, input_param=shape))
    for layer in layers:
        message.add("layer", layer)
    return prototxt.format(message)


def weights_of(net: Net) -> bytes:
    """The blobs as a caffemodel; of each layer only name and type stand beside them."""
    from bridge.writers import caffemodel

    layers = tuple(
        dataclasses.replace(layer, definition=Message(name=layer.name, type=layer.type))
        for layer in net.layers
        if layer.blobs
    )
    stream = io.BytesIO()
    caffemodel.write(net.replace(layers=layers, definition=Message()), stream)
    return stream.getvalue()


def _backend() -> Any:
    return importlib.import_module("backends.pycaffe")
