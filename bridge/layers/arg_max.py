"""ArgMax: where the largest values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import CaffeLayer, Params, canonical_axis, layer_type
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ArgMax")
class ArgMax(CaffeLayer):
    """The places of the ``top_k`` largest values, as numbers; of equal values the last place comes first.

    With ``axis``, along that axis, or the values themselves with ``out_max_val``. Without it,
    over all of a sample: (N, 1, top_k, 1...) places, or (N, 2, top_k, 1...) places and values.

    Source: caffe.proto ``ArgMaxParameter``, argmax_layer.cpp; ONNX ``ArgMax``, ``TopK``.
    """

    adds_many = False
    chooses = True
    rounds_near_one = False
    message = "argmax_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    out_max_val: bool = False
    top_k: int = 1
    axis: int | None = None

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["top_k"] < 1:
            raise p.fail(f"parameter 'top_k' is {values['top_k']}", expected="at least 1")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        bottom = bottoms[0]
        axis = None if self.axis is None else canonical_axis(self.axis, len(bottom), self)
        extent = count(bottom[1:]) if axis is None else bottom[axis]
        if not bottom or self.top_k > extent:
            raise self.fail(f"top_k {self.top_k} of {extent} values")
        if axis is not None:
            return ((*bottom[:axis], self.top_k, *bottom[axis + 1 :]),)
        return ((bottom[0], 1 + self.out_max_val, self.top_k, *[1] * (len(bottom) - 3)),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        shape = g.shape(x[0])
        if self.axis is not None:
            axis = canonical_axis(self.axis, len(shape), self)
            places, values = self._largest(g, x[0], axis, lambda: shape[axis])
            return values if self.out_max_val else places
        places, values = self._largest(g, g.Flatten(x[0], axis=1), 1, lambda: count(shape[1:]))
        both = g.Concat(places, values, axis=1) if self.out_max_val else places
        return g.Reshape(both, g.ints([0, 1 + self.out_max_val, self.top_k, *[1] * (len(shape) - 3)]))

    def _largest(self, g: OnnxBuilder, x: str, axis: int, extent: Callable[[], int]) -> tuple[str, str]:
        """Places and values of the ``top_k`` largest along an axis, both float."""
        if self.top_k == 1:
            places = g.ArgMax(x, axis=axis, select_last_index=1)
            return g.Cast(places, to=g.FLOAT), g.reduce("Max", x, [axis])
        # TopK takes the first of equal values: let it see them from behind
        last = extent() - 1
        turned = g.Slice(x, g.ints([-1]), g.ints([-last - 2]), g.ints([axis]), g.ints([-1]))
        values, places = g.op("TopK", turned, g.ints([self.top_k]), outputs=2, axis=axis)
        return g.Cast(g.Sub(g.const(np.int64(last)), places), to=g.FLOAT), str(values)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        values = x[0].array if self.axis is not None else x[0].array.reshape(len(x[0]), count(x[0].shape[1:]))
        places, largest = F.caffe_arg_max(values, self.top_k, 1 if self.axis is None else self.axis)
        if self.axis is not None:
            return F.as_variable(largest if self.out_max_val else places)
        both = x[0].xp.stack([places, largest][: 1 + self.out_max_val], axis=1)
        return F.as_variable(both.reshape(*both.shape, *[1] * (x[0].ndim - 3)))
