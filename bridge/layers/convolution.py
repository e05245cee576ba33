"""Convolution in any number of spatial dimensions."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import CaffeLayer, Params, canonical_axis, field_pair, layer_type, spread
from bridge.schema import Shape


@layer_type("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution")
class Convolution(CaffeLayer):
    """Grouped, dilated cross-correlation.

    Blobs: ``weight`` (num_output, in / group, kernel...), ``bias`` (num_output).

    Attributes:
        num_output: Output channels.
        kernel_size: Extent per spatial axis; one value serves all axes.
        stride, pad, dilation: Likewise; none given is 1, 0, 1.
        group: Channels are split in this many independent convolutions.
        bias_term: Whether there is a bias.
        axis: The channel axis; the axes behind it are spatial.

    Source: caffe.proto ``ConvolutionParameter``, base_conv_layer.cpp; ONNX ``Conv``.
    """

    message = "convolution_param"
    ignored = frozenset({"engine", "weight_filler", "bias_filler", "force_nd_im2col"})

    num_output: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pad: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    group: int = 1
    bias_term: bool = True
    axis: int = 1

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        values["kernel_size"] = field_pair(p, ["kernel_size"], ("kernel_h", "kernel_w"))
        values["stride"] = field_pair(p, ["stride"], ("stride_h", "stride_w"))
        values["pad"] = field_pair(p, ["pad"], ("pad_h", "pad_w"))
        _check(p, values)
        return values

    def __post_init__(self) -> None:
        if self.type != "Convolution" and self.type.lower().find("depthwise") >= 0 and self.group == 1:
            # the depthwise forks take one group per output channel whatever `group` says
            object.__setattr__(self, "group", self.num_output)

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight", "bias") if self.bias_term else ("weight",)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        channels, _, kernel, *_ = self._geometry(bottoms[0])
        shapes: dict[str, Shape] = {"weight": (self.num_output, channels // self.group, *kernel)}
        return {**shapes, "bias": (self.num_output,)} if self.bias_term else shapes

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        axis = canonical_axis(self.axis, len(bottoms[0]), self)
        _, space, kernel, stride, pad, dilation = self._geometry(bottoms[0])
        out = tuple(
            (n + 2 * p - (d * (k - 1) + 1)) // s + 1 for n, k, s, p, d in zip(space, kernel, stride, pad, dilation, strict=True)
        )
        if min(out, default=1) < 1:
            raise self.fail(f"kernel {kernel} does not fit the input {space}, padded by {pad}")
        return tuple((*bottom[:axis], self.num_output, *out) for bottom in bottoms)

    def _geometry(self, bottom: Shape) -> tuple[int, Shape, Shape, Shape, Shape, Shape]:
        """Input channels, spatial extents, and kernel, stride, pad, dilation per axis."""
        axis = canonical_axis(self.axis, len(bottom), self)
        channels, space = bottom[axis], tuple(bottom[axis + 1 :])
        if channels is not None and channels % self.group:
            raise self.fail(f"{channels} input channels do not divide into {self.group} groups")
        return channels, space, *self.window(len(space))

    def window(self, rank: int) -> tuple[Shape, Shape, Shape, Shape]:
        """Kernel, stride, pad and dilation for ``rank`` spatial axes."""
        if rank and not self.kernel_size:
            raise self.fail("parameter 'kernel_size' is missing")
        return (
            spread(self.kernel_size, rank, 1, self, "kernel_size"),
            spread(self.stride, rank, 1, self, "stride"),
            spread(self.pad, rank, 0, self, "pad"),
            spread(self.dilation, rank, 1, self, "dilation"),
        )

    def onnx_attributes(self, rank: int) -> dict[str, Any]:
        """The attributes that ONNX ``Conv`` and ``ConvTranspose`` share."""
        kernel, stride, pad, dilation = self.window(rank)
        return {"kernel_shape": kernel, "strides": stride, "pads": pad * 2, "dilations": dilation, "group": self.group}

    def to_onnx(self, g: Any, *x: str) -> list[str]:
        return [self._each(g, self._weight(g, bottom), bottom) for bottom in x]

    def _weight(self, g: Any, bottom: str) -> list[str]:
        return [g.blob(self, role) for role in self.blobs]

    def _each(self, g: Any, blobs: list[str], bottom: str) -> str:
        shape = g.shape(bottom)
        axis = canonical_axis(self.axis, len(shape), self)
        node = getattr(g, self.onnx_operator)
        if axis == 1:
            return str(node(bottom, *blobs, **self.onnx_attributes(len(shape) - 2)))
        # axes before the channels are all batch to Caffe: fold them into one, and back
        folded = g.Reshape(bottom, g.ints([-1, *shape[axis:]]))
        y = node(folded, *blobs, **self.onnx_attributes(len(shape) - axis - 1))
        (out,) = self.infer(tuple(shape[:]))
        return str(g.Reshape(y, g.ints(out)))

    onnx_operator = "Conv"

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return tuple(F.folded(bottom, self.axis, lambda v: self._convolve(F, link, v)) for bottom in x)

    def _convolve(self, F: Any, link: Any, x: Any) -> Any:
        _, stride, pad, dilation = self.window(x.ndim - 2)
        bias = link.b if self.bias_term else None
        return F.convolution(x, link.W, bias, stride, pad, dilation, self.group)


def _check(p: Params, values: dict[str, Any]) -> None:
    if values["num_output"] < 1:
        raise p.fail(f"parameter 'num_output' is {values['num_output']}, expected at least 1")
    if values["group"] < 1 or values["num_output"] % values["group"]:
        raise p.fail(f"{values['num_output']} outputs do not divide into {values['group']} groups")
    for name, least in (("kernel_size", 1), ("stride", 1), ("pad", 0), ("dilation", 1)):
        if any(value < least for value in values[name]):
            raise p.fail(f"parameter '{name}' is {values[name]}, expected at least {least}")
