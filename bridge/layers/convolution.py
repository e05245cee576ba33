"""Convolution in any number of spatial dimensions."""

from __future__ import annotations

from operator import add
from typing import TYPE_CHECKING, Any, ClassVar

from bridge.layers.base import MANY, CaffeLayer, Params, canonical_axis, field_pair, layer_type, same_shapes, spread
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


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

    float16_safe = True
    flat_weight = True
    filters = True
    rounds_near_one = False
    message = "convolution_param"
    bottom_count = (1, MANY)
    top_count = (1, MANY)

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
        for name, side in (("kernel_size", "kernel"), ("stride", "stride"), ("pad", "pad")):
            values[name] = field_pair(p, [name], (f"{side}_h", f"{side}_w"))
        _check(p, values)
        return values

    def __post_init__(self) -> None:
        if self.type != "Convolution" and self.type.lower().find("depthwise") >= 0 and self.group == 1:
            # the depthwise forks take one group per output channel whatever `group` says
            object.__setattr__(self, "group", self.num_output)

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight", "bias") if self.bias_term else ("weight",)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        channels, space = self._split(bottoms[0])
        shapes: dict[str, Shape] = {"weight": (*self.weight_channels(channels), *self.window(len(space))[0])}
        return {**shapes, "bias": (self.num_output,)} if self.bias_term else shapes

    def weight_channels(self, channels: int) -> Shape:
        """The first two extents of the weight, for an input of ``channels``."""
        return (self.num_output, channels // self.group)

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return self.blobs.blob("weight").size // self.num_output + 1

    def multiply_adds(self, *bottoms: Shape) -> int | None:
        window = self.blobs.blob("weight").size // self.num_output
        return window * sum(map(count, self.infer(*bottoms)))

    @property
    def outputs(self) -> int | None:
        return self.num_output

    @property
    def input_channels(self) -> int | None:
        return self.blobs.blob("weight").shape[1] * self.group if "weight" in self.blobs else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        bottom = same_shapes(self, bottoms)
        if len(self.tops) not in (0, len(bottoms)):
            raise self.fail(f"has {len(bottoms)} bottoms and {len(self.tops)} tops", expected="as many of both")
        _, space = self._split(bottom)
        out = tuple(map(self.out_extent, space, *self.window(len(space))))
        if min(out, default=1) < 1:
            kernel, _, pad, _ = self.window(len(space))
            raise self.fail(f"kernel {kernel} does not fit the input {space}, padded by {pad}", rule="kernel")
        return ((*bottom[: len(bottom) - len(space) - 1], self.num_output, *out),) * len(bottoms)

    @staticmethod
    def out_extent(n: int, k: int, s: int, p: int, d: int) -> int:
        """Extent of the top along one spatial axis, from the bottom's, kernel, stride, pad and dilation."""
        steps = n + 2 * p - (d * (k - 1) + 1)
        return (steps // s if steps > 0 else -(-steps // s)) + 1  # rounded towards zero, as C++ does

    @staticmethod
    def shortfall(n: int, k: int, s: int, p: int, d: int) -> int:
        """How far the first window reaches beyond the trailing pad; Caffe finds zeros there."""
        return max(0, d * (k - 1) + 1 - n - 2 * p)

    def _split(self, bottom: Shape) -> tuple[int, Shape]:
        """Channels and spatial extents of a bottom."""
        axis = canonical_axis(self.axis, len(bottom), self)
        if bottom[axis] % self.group:
            raise self.fail(f"{bottom[axis]} input channels do not divide into {self.group} groups", rule="group")
        return bottom[axis], tuple(bottom[axis + 1 :])

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

    onnx_operator: ClassVar[str] = "Conv"

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str | list[str]:
        shape = g.shape(x[0])
        axis = canonical_axis(self.axis, len(shape), self)
        flat = len(shape) == axis + 1
        blobs = self.onnx_blobs(g, (*self.blobs.blob("weight").shape, 1) if flat else None)
        return [self._emit(g, v, blobs, axis) for v in x]

    def onnx_blobs(self, g: OnnxBuilder, shape: Shape | None) -> list[str]:
        """The weight, in another shape if one is given, and the bias if there is one."""
        weight = g.blob(self, "weight", shape)
        return [weight, g.blob(self, "bias")] if self.bias_term else [weight]

    def _emit(self, g: OnnxBuilder, x: str, blobs: list[str], axis: int) -> str:
        """The node, between what brings its input and output into the form that ONNX has."""
        kernel, stride, pad, dilation = self.window(len(g.shape(x)) - axis - 1)
        trailing = self.trailing(g, x, axis)
        y = getattr(g, self.onnx_operator)(
            self.onnx_input(g, self._fold(g, x, axis)), *blobs, kernel_shape=kernel or (1,), strides=stride or (1,),
            pads=pad + trailing or (0, 0), dilations=dilation or (1,), group=self.group,
        )  # fmt: skip
        return self._unfold(g, x, self.onnx_output(g, y), axis)

    def trailing(self, g: OnnxBuilder, x: str, axis: int) -> Shape:
        """The pad behind each axis of an input, with what a window that is larger than the input lacks."""
        shape = g.shape(x)
        window = self.window(len(shape) - axis - 1)
        fixed = [shape[i] if shape.fixed(i) else MANY for i in range(axis + 1, len(shape))]
        own = map(self.shortfall, shape.extents[axis + 1 :], *window)
        fixed = [shape[axis + 1 + i] if short else fixed[i] for i, short in enumerate(own)]
        return tuple(map(add, window[2], map(self.shortfall, fixed, *window)))

    def onnx_input(self, g: OnnxBuilder, x: str) -> str:
        """What is done to the bottom first; nothing, but in twins of this type."""
        return x

    def onnx_output(self, g: OnnxBuilder, y: str) -> str:
        """What is done to the top last."""
        return y

    def _fold(self, g: OnnxBuilder, x: str, axis: int) -> str:
        """All axes before the channels as one, and at least one behind them: the only form that ONNX has."""
        shape = g.shape(x)
        if len(shape) > axis + 1:
            return x if axis == 1 else g.reshape(x, [-1, shape[axis]], axis + 1)
        return g.Reshape(x, g.ints([-1, shape[axis], 1]))

    def _unfold(self, g: OnnxBuilder, x: str, y: str, axis: int) -> str:
        shape = g.shape(x)
        if axis == 1 and len(shape) > 2:
            return y
        space = tuple(map(self.out_extent, shape[axis + 1 :], *self.window(len(shape) - axis - 1)))
        batch = [shape[i] if shape.fixed(i) else -1 for i in range(axis)]
        if batch.count(-1) > 1:
            batch = list(shape[:axis])  # one open extent is all that a Reshape can find
        return g.Reshape(y, g.ints([*batch, self.num_output, *space]))

    @property
    def takes_tail(self) -> bool:
        own = type(self).to_chainer is Convolution.to_chainer and type(self)._convolve is Convolution._convolve
        return own and self.chainer_function == "caffe_convolution" and len(self.bottoms) == self.axis == 1

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return tuple(F.fold_batch_axes(bottom, self.axis, lambda v: self._convolve(F, link, v)) for bottom in x)

    def _convolve(self, F: ChainerFunctions, link: LayerArrays, x: Any) -> Any:
        space = link.W.ndim - 2
        _, stride, pad, dilation = self.window(space) if space else ((1,), (1,), (0,), (1,))
        weight, bias = self.chainer_blobs(F, link)
        weight = weight if space else F.reshape(weight, (*weight.shape, 1))
        shortfall = tuple(map(self.shortfall, x.shape[2:], *self.window(space)))
        if any(shortfall):
            x = F.pad(x, [(0, 0), (0, 0), *((0, n) for n in shortfall)], "constant", constant_values=0)
        function = getattr(F, self.chainer_function)
        return function(x, weight, bias, stride, pad, dilation, self.group)

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        """The weight, and the bias if there is one."""
        return link.W, link.b if self.bias_term else None

    chainer_function: ClassVar[str] = "caffe_convolution"


def _check(p: Params, values: dict[str, Any]) -> None:
    if values["num_output"] < 1:
        raise p.fail(f"parameter 'num_output' is {values['num_output']}", expected="at least 1")
    if values["group"] < 1 or values["num_output"] % values["group"]:
        raise p.fail(f"{values['num_output']} outputs do not divide into {values['group']} groups")
    for name, least in (("kernel_size", 1), ("stride", 1), ("pad", 0), ("dilation", 1)):
        if any(value < least for value in values[name]):
            raise p.fail(f"parameter '{name}' is {values[name]}", expected=f"at least {least}")
