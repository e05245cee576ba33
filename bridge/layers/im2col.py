"""Im2col: the windows of a convolution, laid out as channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import canonical_axis, layer_type
from bridge.layers.convolution import Convolution
from bridge.schema import Shape, count, times
from bridge.schema.blob import MOST_VALUES

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_END = 2**31 - 1
"""An end of a slice: the axis's."""
_MOST_PARTS = 1000
"""So many slices at most, one for each place of a window along each axis."""


@layer_type("Im2col")
class Im2col(Convolution):
    """What a convolution multiplies its weight with: (N, C, H, W) becomes (N, C x kernel, H', W').

    Values are copied, as in Caffe. A convolution that picks them multiplies the others by 0, and 0 times infinity is
    NaN.

    Source: caffe.proto ``ConvolutionParameter``, im2col_layer.cpp, im2col.cpp; ONNX ``Slice``, ``Concat``.
    """

    bottom_count = (1, 1)
    top_count = (1, 1)

    num_output: int = 1
    bias_term: bool = False

    def roles(self, stored: int) -> tuple[str, ...]:
        return ()

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {}

    def _convolution(self, channels: int, rank: int) -> Convolution:
        kernel, stride, pad, dilation = self.window(rank)
        if not channels:
            raise self.fail("the input has no channels")
        return Convolution(
            name=self.name, type="Convolution", num_output=channels * count(kernel), group=channels, bias_term=False,
            kernel_size=kernel, stride=stride, pad=pad, dilation=dilation, axis=self.axis,
        )  # fmt: skip

    def _places(self, channels: int, rank: int) -> np.ndarray:
        """Each channel's place (int64) after all axes were unfolded, each into channels before those there were."""
        kernel = self.window(rank)[0]
        if channels * count(kernel) > MOST_VALUES or sum(kernel) > _MOST_PARTS:
            raise UnsupportedLayerError(f"kernel {times(kernel)} is too large to be unfolded", subject=self.label)
        unfolded = np.arange(channels * count(kernel), dtype=np.int64).reshape(*kernel[::-1], channels)
        return unfolded.T.reshape(-1)

    def _axis(self, rank: int) -> int:
        axis = canonical_axis(self.axis, rank, self)
        if axis + 1 >= rank:
            raise self.fail(f"the input has {rank} axes", expected=f"some behind axis {axis}")
        return axis

    adds_many = False

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return None

    def multiply_adds(self, *bottoms: Shape) -> int | None:
        return None

    @property
    def input_channels(self) -> int | None:
        return None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        (bottom,) = bottoms
        axis = self._axis(len(bottom))
        return self._convolution(bottom[axis], len(bottom) - axis - 1).infer(bottom)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        shape = g.shape(x[0])
        axis = self._axis(len(shape))
        rank = len(shape) - axis - 1
        kernel, stride, pad, dilation = self.window(rank)
        before = [0] * (axis + 1)
        pads = [*before, *pad, *before, *self._convolution(shape[axis], rank).trailing(g, x[0], axis)]
        places = self._places(shape[axis], rank)
        y = g.Pad(x[0], g.ints(pads)) if any(pads) else x[0]
        for i in range(rank):
            there = g.ints([axis + 1 + i])
            ends = [(k + 1 - kernel[i]) * dilation[i] or _END for k in range(kernel[i])]
            parts = [
                g.Slice(y, g.ints([k * dilation[i]]), g.ints([end]), there, g.ints([stride[i]]))
                for k, end in enumerate(ends)
            ]
            y = g.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]
        return str(g.Gather(y, g.const(places), axis=axis))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axis = self._axis(x[0].ndim)
        rank = x[0].ndim - axis - 1
        window = self.window(rank)
        inner = self._convolution(x[0].shape[axis], rank)
        places = F.chainer.backend.get_array_module(x[0]).asarray(self._places(x[0].shape[axis], rank))
        short = map(inner.shortfall, x[0].shape[axis + 1 :], *window)
        pads = [(0, 0)] * (axis + 1) + [(pad, pad + more) for pad, more in zip(window[2], short, strict=True)]
        y = F.pad(x[0], pads, "constant", constant_values=0)
        for i, (kernel, stride, _, dilation) in enumerate(zip(*window, strict=True)):
            ends = [(k + 1 - kernel) * dilation or None for k in range(kernel)]
            whole = (slice(None),) * (axis + 1 + i)
            parts = [F.get_item(y, (*whole, slice(k * dilation, end, stride))) for k, end in enumerate(ends)]
            y = F.concat(parts, axis=axis)
        return F.get_item(y, (*(slice(None),) * axis, places))
