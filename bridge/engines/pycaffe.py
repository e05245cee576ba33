"""The engine pycaffe: the real Caffe, in another interpreter."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from bridge.engines import Arrays, Tops
from bridge.engines.files import definition_of, weights_of
from bridge.errors import MissingExtraError
from bridge.layers.base import registered_name
from bridge.schema import ServedNet


def missing(python: str | None = None) -> MissingExtraError | None:
    """The reason why it does not work here; ``None`` if it may work."""
    problem: MissingExtraError | None = _backend().missing(python)
    return problem


class Engine:
    """See :class:`bridge.engines.Engine`.

    Args:
        net: The net.
        python: Command of the interpreter that has Caffe.
        timeout: Seconds that one request may take.
    """

    def __init__(self, net: ServedNet, *, python: str | None = None, timeout: float | None = None) -> None:
        self._net = net
        self._options = {name: value for name, value in (("python", python), ("timeout", timeout)) if value}

    @staticmethod
    def lacking(net: ServedNet, *, python: str | None = None, **_: object) -> list[int]:
        """Indices of the layers whose types that Caffe does not have; its Python layers' classes are not looked for."""
        known = _backend().layer_types(python)
        return [index for index, layer in enumerate(net.layers) if registered_name(layer.definition) not in known]

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        with self._session(inputs) as session:
            found: dict[str, np.ndarray] = session.forward(self._fed(inputs))
        return found

    def tops(self, inputs: Arrays) -> list[Tops]:
        with self._session(inputs) as session:
            written = session.forward_by_layer(self._fed(inputs))
        added = len(written) - len(self._net.layers)  # Input layers were put in front for inputs without a layer
        return [
            tuple(found.get(top) for top in layer.tops)
            for layer, (_, found) in zip(self._net.layers, written[added:], strict=True)
        ]

    def _fed(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {name: inputs[name] for name in self._net.inputs if name in inputs}

    def _session(self, inputs: Arrays) -> Any:
        weights = weights_of(self._net) if any(layer.blobs for layer in self._net.layers) else None
        return _backend().Session(definition_of(self._net, inputs), weights, **self._options)


def _backend() -> Any:
    return importlib.import_module("backends.pycaffe")
