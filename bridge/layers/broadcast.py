"""What Scale and Bias share: a small operand, repeated over the axes that it does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bridge.layers.base import CaffeLayer, canonical_axis
from bridge.schema import Shape, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, OnnxBuilder


class BroadcastLayer(CaffeLayer):
    """Base of the types whose operand has the bottom's extents from ``axis`` on, over ``num_axes`` axes.

    The operand is a blob, or the second bottom where there is one; its own shape then counts.
    """

    ranks = {}
    bottom_count = (1, 2)
    top_count = (1, 1)

    axis: int
    num_axes: int

    def operand_shape(self, *bottoms: Shape) -> Shape:
        """The shape of the operand.

        Raises:
            ModelError: ``axis`` and ``num_axes`` are outside the bottom's axes.
        """
        if len(bottoms) > 1:
            return bottoms[1]
        rank = len(bottoms[0])
        start = canonical_axis(self.axis, rank, self)
        stop = rank if self.num_axes == -1 else start + self.num_axes
        if not start <= stop <= rank:
            raise self.fail(f"num_axes {self.num_axes} from axis {start} runs past the {rank} axes of the input")
        return tuple(bottoms[0][start:stop])

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        operand = self.operand_shape(*bottoms)
        start = self._start(len(operand), len(bottoms[0]))
        if tuple(bottoms[0][start : start + len(operand)]) != operand:
            raise self.fail(f"bottom 1 is {times(operand)}, which does not fit {times(bottoms[0])} at axis {start}")
        return (bottoms[0],)

    def _start(self, own: int, rank: int) -> int:
        """The axis of the bottom that the first of the operand's ``own`` axes stands for."""
        return canonical_axis(self.axis, rank, self) if own else 0

    def spread(self, own: Sequence[int], rank: int) -> list[int]:
        """The operand's extents before axes of extent one, so that it fits a bottom of ``rank`` axes."""
        return [*own, *[1] * self.trailing(len(own), rank)]

    def trailing(self, own: int, rank: int) -> int:
        """How many axes the bottom has behind those that the operand's ``own`` axes stand for."""
        return rank - self._start(own, rank) - own

    def onnx_operand(self, g: OnnxBuilder, role: str, *x: str) -> str:
        """The operand as a value that ONNX can broadcast to the first bottom."""
        rank = len(g.shape(x[0]))
        if len(x) < 2:
            return g.blob(self, role, self.spread(self.blobs.blob(role).shape, rank))
        own = len(g.shape(x[1]))
        trailing = self.trailing(own, rank)
        return g.Reshape(x[1], g.ints([0] * own + [1] * trailing)) if own and trailing else x[1]

    def chainer_operand(self, F: ChainerFunctions, array: Any, x: Any) -> Any:
        """The operand as a variable of the shape of ``x``."""
        return F.broadcast_to(F.reshape(array, self.spread(array.shape, x.ndim)), x.shape)
