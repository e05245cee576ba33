"""Deconvolution: the transpose of a convolution, which enlarges."""

from __future__ import annotations

from typing import ClassVar

from bridge.layers.base import layer_type
from bridge.layers.convolution import Convolution
from bridge.schema import Shape, count


@layer_type("Deconvolution")
class Deconvolution(Convolution):
    """Grouped, dilated transposed convolution; ``pad`` is cut off the result.

    Blobs: ``weight`` (in, num_output / group, kernel...), ``bias`` (num_output).

    Attributes: those of :class:`~bridge.layers.convolution.Convolution`.

    Source: caffe.proto ``ConvolutionParameter``, deconv_layer.cpp, base_conv_layer.cpp; ONNX
    ``ConvTranspose``.
    """

    flat_weight = False
    filters = False
    inputs_first = True
    onnx_operator: ClassVar[str] = "ConvTranspose"
    chainer_function: ClassVar[str] = "caffe_deconvolution"

    @property
    def input_channels(self) -> int | None:
        return self.blobs.blob("weight").shape[0] if "weight" in self.blobs else None

    def multiply_adds(self, *bottoms: Shape) -> int | None:
        window = self.blobs.blob("weight").size // self.blobs.blob("weight").shape[0]  # that each input is spread over
        return window * sum(map(count, bottoms))

    def weight_channels(self, channels: int) -> Shape:
        return (channels, self.num_output // self.group)

    @staticmethod
    def out_extent(n: int, k: int, s: int, p: int, d: int) -> int:
        return s * (n - 1) + d * (k - 1) + 1 - 2 * p

    @staticmethod
    def shortfall(n: int, k: int, s: int, p: int, d: int) -> int:
        return 0
