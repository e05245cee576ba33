"""Im2col: the windows of a convolution, laid out as channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import canonical_axis, layer_type
from bridge.layers.convolution import Convolution
from bridge.schema import Shape, count, times
from bridge.schema.blob import MOST_VALUES

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Im2col")
class Im2col(Convolution):
    """What a convolution multiplies its weight with: (N, C, H, W) becomes (N, C x kernel, H', W').

    It is the convolution of one group per channel whose weight picks each place of the window in turn.

    Source: caffe.proto ``ConvolutionParameter``, im2col_layer.cpp, im2col.cpp; ONNX ``Conv``.
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

    def _picking(self, channels: int, rank: int) -> np.ndarray:
        """The convolution's weight (channels x kernel, 1, kernel...) float32."""
        kernel = self.window(rank)[0]
        if channels * count(kernel) ** 2 > MOST_VALUES:
            raise UnsupportedLayerError(f"kernel {times(kernel)} is too large to be a convolution", subject=self.label)
        places = np.eye(count(kernel), dtype=np.float32).reshape(-1, 1, *kernel)
        return np.tile(places, (channels, *[1] * (places.ndim - 1)))

    def _axis(self, rank: int) -> int:
        axis = canonical_axis(self.axis, rank, self)
        if axis + 1 >= rank:
            raise self.fail(f"the input has {rank} axes", expected=f"some behind axis {axis}")
        return axis

    adds_many = False

    def sum_terms(self, *bottoms: Shape) -> int | None:
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
        extents = shape[axis], len(shape) - axis - 1
        weight = g.const(self._picking(*extents), f"{self.name}.places")
        return self._convolution(*extents)._emit(g, x[0], [weight], axis)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axis = self._axis(x[0].ndim)
        extents = x[0].shape[axis], x[0].ndim - axis - 1
        picker = F.chainer.backend.get_array_module(x[0]).asarray(self._picking(*extents))
        return self._convolution(*extents).to_chainer(F, cast("LayerArrays", SimpleNamespace(W=picker)), x[0])
