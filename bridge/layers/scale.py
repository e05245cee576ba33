"""Scale: a product with a blob or a second input, and a shift."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import CaffeLayer, canonical_axis, layer_type
from bridge.schema import Shape


@layer_type("Scale")
class Scale(CaffeLayer):
    """``x * gamma + beta``, both repeated over the axes that they do not have.

    Blobs: with one bottom ``gamma`` (the extents of the bottom from ``axis`` on, over
    ``num_axes`` axes) and, with ``bias_term``, ``beta`` (likewise). With two bottoms the
    second is gamma, and the only blob is ``beta``.

    Attributes:
        axis: First axis of the bottom that gamma has.
        num_axes: How many; -1 is all to the end, 0 a single number.
        bias_term: Whether there is a shift.

    Source: caffe.proto ``ScaleParameter``, scale_layer.cpp; ONNX ``Mul``, ``Add``.
    """

    message = "scale_param"
    ignored = frozenset({"filler", "bias_filler"})
    ranks = {}
    chainer_params = {"gamma": "W", "beta": "b"}

    axis: int = 1
    num_axes: int = 1
    bias_term: bool = False

    def roles(self, stored: int) -> tuple[str, ...]:
        gamma = ("gamma",) if len(self.bottoms) < 2 else ()
        return (*gamma, "beta") if self.bias_term else gamma

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        if len(bottoms) > 1:
            return {role: bottoms[1] for role in self.roles(0)}
        start = canonical_axis(self.axis, len(bottoms[0]), self)
        stop = len(bottoms[0]) if self.num_axes == -1 else start + self.num_axes
        if stop > len(bottoms[0]):
            raise self.fail(f"num_axes {self.num_axes} from axis {start} runs past the {len(bottoms[0])} axes of the input")
        return {role: tuple(bottoms[0][start:stop]) for role in self.roles(0)}

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        start = canonical_axis(self.axis, len(bottoms[0]), self)
        if len(bottoms) > 1 and tuple(bottoms[0][start : start + len(bottoms[1])]) != bottoms[1]:
            raise self.fail(f"bottom 1 is {bottoms[1]}, which does not fit {bottoms[0]} at axis {start}")
        return (bottoms[0],)

    def _broadcast(self, own: tuple[Any, ...], rank: int) -> list[Any]:
        """``own`` between axes of extent one, so that it fits an input of ``rank`` axes."""
        start = canonical_axis(self.axis, rank, self)
        return [*own, *[1] * (rank - start - len(own))]

    def to_onnx(self, g: Any, *x: str) -> str:
        rank = len(g.shape(x[0]))
        if len(x) > 1:
            own = g.shape(x[1])
            trailing = rank - canonical_axis(self.axis, rank, self) - len(own)
            gamma = g.Reshape(x[1], g.ints([0] * len(own) + [1] * trailing)) if trailing else x[1]
        else:
            gamma = g.blob(self, "gamma", self._broadcast(self.blobs.blob("gamma").shape, rank))
        y = g.Mul(x[0], gamma)
        if self.bias_term:
            y = g.Add(y, g.blob(self, "beta", self._broadcast(self.blobs.blob("beta").shape, rank)))
        return str(y)

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        gamma = x[1] if len(x) > 1 else link.W
        y = x[0] * F.reshape(gamma, self._broadcast(gamma.shape, x[0].ndim))
        return y + F.reshape(link.b, self._broadcast(link.b.shape, x[0].ndim)) if self.bias_term else y
