"""Helper: a function node without Chainer's checks, which cost more time than a small function computes."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from bridge.chain.functions import chainer


class Node(chainer.FunctionNode):
    """A function that enters Chainer's graph unchecked, where ``chainer.config.type_check`` is off.

    At each call Chainer checks the array type, device and memory layout of inputs and outputs. A subclass
    promises three things instead: it returns arrays of the type of its inputs, it retains no outputs, and it is
    called with variables. The checks are left out on the CPU, where no function hook is active.
    """

    def apply(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The output variables for input variables.

        Source: ``chainer.FunctionNode.apply``.
        """
        config = chainer.config
        arrays = tuple([x._data[0] for x in inputs])
        watched = config.type_check or config.debug or config.schedule_func or chainer.get_function_hooks()
        if watched or not all(type(array) is np.ndarray for array in arrays):
            results: tuple[Any, ...] = super().apply(inputs)
            return results
        outputs = self.forward(arrays)
        self._input_layouts, self._output_layouts = (None,) * len(inputs), (None,) * len(outputs)
        self._output_count = len(outputs)
        requires_grad = any(x.requires_grad for x in inputs)
        results = tuple([chainer.Variable._init_unchecked(y, requires_grad=requires_grad) for y in outputs])
        if requires_grad and config.enable_backprop:
            self._enter(inputs, results)
        return results

    def _enter(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Put the node between its inputs and its outputs in the graph."""
        self.inputs = tuple([x.node for x in inputs])
        self.rank = max([x.rank for x in inputs])
        for y in outputs:
            y.creator_node = self
        self.outputs = tuple([weakref.ref(y.node) for y in outputs])
        for index in self._input_indexes_to_retain or ():
            inputs[index].retain_data()
        self.lazy_grad_sum = chainer.config.lazy_grad_sum
