"""The engine NumPy: the layers that have a plain NumPy form, which are those that Chainer lacks."""

from __future__ import annotations

import numpy as np

from bridge.engines import Arrays, Tops
from bridge.schema import ServedNet


class Engine:
    """See :class:`bridge.engines.Engine`."""

    def __init__(self, net: ServedNet) -> None:
        self._net = net

    @staticmethod
    def lacking(net: ServedNet) -> list[int]:
        """Indices of the layers that have no NumPy form."""
        return [index for index, layer in enumerate(net.layers) if not (layer.is_input or layer.has_numpy)]

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for layer, tops in zip(self._net.layers, self.tops(inputs), strict=True):
            values.update({name: top for name, top in zip(layer.tops, tops, strict=False) if top is not None})
        return {name: values[name] for name in self._net.outputs if name in values}

    def tops(self, inputs: Arrays) -> list[Tops]:
        values = {name: np.asarray(array, np.float32) for name, array in inputs.items()}
        result: list[Tops] = []
        for layer in self._net.layers:
            if not layer.is_input:
                tops = layer.to_numpy(*(values[bottom] for bottom in layer.bottoms))
                values.update(zip(layer.tops, (np.asarray(top, np.float32) for top in tops), strict=False))
            result.append(tuple(values.get(top) for top in layer.tops))
        return result
