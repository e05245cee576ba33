"""The engine Chainer: runs the chain that is built from the net, in test mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.build import NetChain, build_chain
from bridge.chain.devices import to_host
from bridge.chain.functions import chainer
from bridge.engines import Arrays, Tops
from bridge.schema import ServedNet


class Engine:
    """See :class:`bridge.engines.Engine`."""

    def __init__(self, net: ServedNet) -> None:
        self._chain: NetChain = build_chain(net)
        self._bottoms = [layer.bottoms for layer in net.layers]

    @staticmethod
    def lacking(net: ServedNet) -> list[int]:
        """Indices of the layers that Chainer has no functions for."""
        return [index for index, layer in enumerate(net.layers) if not layer.has_chainer]

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        values: dict[str, Any] = {name: chainer.as_variable(array) for name, array in _float32(inputs).items()}
        names, kept = self._chain.layer_tops(), set(self._chain.net_outputs)
        last = {bottom: index for index, bottoms in enumerate(self._bottoms) for bottom in bottoms}
        with _test_mode():
            for index, tops in self._chain.steps(values):
                values.update(zip(names[index], tops, strict=False))
                for name in self._bottoms[index]:
                    if last[name] == index and name not in kept:
                        values.pop(name, None)  # no later layer reads it
                del tops
        return {name: _array(values[name]) for name in self._chain.net_outputs if name in values}

    def tops(self, inputs: Arrays) -> list[Tops]:
        values: dict[str, Any] = {name: chainer.as_variable(array) for name, array in _float32(inputs).items()}
        result: list[Tops] = []
        with _test_mode():
            for names, (_, tops) in zip(self._chain.layer_tops(), self._chain.steps(values), strict=True):
                values.update(zip(names, tops, strict=False))
                result.append(tuple(_array(top) for top in tops))
        return result


def _test_mode() -> Any:
    from contextlib import ExitStack

    stack = ExitStack()
    stack.enter_context(chainer.using_config("train", False))
    stack.enter_context(chainer.using_config("enable_backprop", False))
    return stack


def _float32(inputs: Arrays) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float32) for name, array in inputs.items()}


def _array(variable: Any) -> np.ndarray:
    return to_host(variable.array)
