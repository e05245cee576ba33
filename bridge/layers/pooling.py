"""Pooling over two spatial axes, with Caffe's rounding and borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.layers.base import CaffeLayer, Params, field_pair, layer_type
from bridge.layers.pooled_axis import LOWEST, PooledAxis, divisor_correction, trailing_pad
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Pooling")
class Pooling(CaffeLayer):
    """MAX, AVE or STOCHASTIC pooling of the last two of four axes.

    The number of windows is rounded up (``round_mode`` CEIL); with padding, a last window
    that would start behind the image is dropped. AVE divides by the part of the window
    within the image padded on both sides. At test time STOCHASTIC is the average weighted
    by the values themselves. A second top of MAX holds the places of the maxima, as numbers
    in the plane (H, W).

    Where the stride is larger than the kernel and there is no padding, last windows can lie
    behind the image: their MAX is ``-FLT_MAX`` at place -1, their AVE 0 divided by an extent
    of zero or less.

    Attributes:
        pool: The kind of pooling.
        kernel_size, stride, pad: (height, width).
        global_pooling: One window over the whole image.
        round_mode: Rounding of the number of windows; some forks say ``ceil_mode: false`` for FLOOR.

    Source: caffe.proto ``PoolingParameter``, pooling_layer.cpp, pooling_layer.cu; ONNX
    ``MaxPool``, ``AveragePool``.
    """

    adds_many = False
    float16_safe = True
    rounds_near_one = False
    message = "pooling_param"
    bottom_count = (1, 1)
    top_count = (1, 2)

    pool: Literal["MAX", "AVE", "STOCHASTIC"] = "MAX"
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = (1, 1)
    pad: tuple[int, ...] = (0, 0)
    global_pooling: bool = False
    round_mode: Literal["CEIL", "FLOOR"] = "CEIL"

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["global_pooling"] and any(name in p for name in ("kernel_size", "kernel_h", "kernel_w")):
            raise p.fail("has a kernel beside global_pooling", expected="one of the two")
        if "ceil_mode" in p:  # PyTorch's word for it, in forks and converters
            values["round_mode"] = "CEIL" if p.read("ceil_mode", bool, True) else "FLOOR"
            if "round_mode" in p and p.read("round_mode", Literal["CEIL", "FLOOR"], "CEIL") != values["round_mode"]:
                raise p.fail("has ceil_mode and round_mode, which say different things")
        for name, default in (("kernel", 0), ("stride", 1), ("pad", 0)):
            key, sides = "kernel_size" if name == "kernel" else name, (f"{name}_h", f"{name}_w")
            if (sides[0] in p) != (sides[1] in p):
                raise p.fail(f"has one of '{sides[0]}' and '{sides[1]}'", expected="both")
            pair = field_pair(p, [key], sides) or (default,)
            values[key] = pair if sides[0] in p else pair[-1:] * 2
        _check(p, values)
        return values

    @property
    def chooses(self) -> bool:
        return len(self.tops) > 1  # the second top has the places of the largest values

    @property
    def needs_float32(self) -> bool:
        """Where it squares what it is given, and where an empty window gives ``-FLT_MAX``."""
        return self.pool == "STOCHASTIC" or (self.pool == "MAX" and self.sparse)

    def window(self, space: Shape) -> tuple[Shape, Shape, Shape]:
        """Kernel, stride and pad, each (height, width), for an image of extents ``space``."""
        return (space, (1, 1), (0, 0)) if self.global_pooling else (self.kernel_size, self.stride, self.pad)

    def axes(self, space: Shape) -> tuple[PooledAxis, PooledAxis]:
        """The windows along height and width, for an image of extents ``space``."""
        ceil, clip = self.round_mode == "CEIL", any(self.pad)
        rows, columns = (PooledAxis(*axis, ceil, clip) for axis in zip(space, *self.window(space), strict=True))
        return rows, columns

    @property
    def sparse(self) -> bool:
        """Whether a stride is larger than its kernel, so that windows can be empty."""
        return not self.global_pooling and any(s > k for k, s in zip(self.kernel_size, self.stride, strict=True))

    @property
    def draws_random(self) -> bool:
        return self.pool == "STOCHASTIC"

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return count(self.window(bottoms[0][2:])[0]) if self.pool == "AVE" else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="4")
        if len(self.tops) > 1 and self.pool != "MAX":
            raise self.fail(f"has {len(self.tops)} tops", expected=f"1 with {self.pool}")
        axes = self.axes(bottoms[0][2:])
        for axis in axes:
            if axis.count < 1:
                raise self.fail(
                    f"kernel {axis.kernel} does not fit the input {axis.extent}, padded by {axis.pad}", rule="kernel"
                )
        return ((*bottoms[0][:2], *(axis.count for axis in axes)),) * max(1, len(self.tops))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> Any:
        lowering = {"MAX": self._max, "AVE": self._average, "STOCHASTIC": self._stochastic}
        return lowering[self.pool](g, x[0])

    def _attributes(self, g: OnnxBuilder, x: str) -> dict[str, Any]:
        if self.global_pooling:
            return {"kernel_shape": tuple(g.shape(x)[2:])}
        if self.sparse:
            trailing = tuple(axis.trailing for axis in self.axes(g.shape(x)[2:]))
        else:
            window = zip(self.kernel_size, self.stride, self.pad, strict=True)
            trailing = tuple(trailing_pad(*axis, self.round_mode == "CEIL") for axis in window)
        return {"kernel_shape": self.kernel_size, "strides": self.stride, "pads": self.pad + trailing}

    def _append_empty(self, g: OnnxBuilder, x: str, y: str, value: float) -> str:
        """The empty windows behind those that start inside the image."""
        empty = [axis.empty for axis in self.axes(g.shape(x)[2:])] if self.sparse else []
        return g.Pad(y, g.ints([0] * 6 + empty), g.const(np.float32(value))) if any(empty) else y

    def _max(self, g: OnnxBuilder, x: str) -> Any:
        if len(self.tops) < 2:
            if self.global_pooling:
                return g.GlobalMaxPool(x)
            return self._append_empty(g, x, g.MaxPool(x, **self._attributes(g, x)), LOWEST)
        y, place = g.op("MaxPool", x, outputs=2, **self._attributes(g, x))
        if _open(g.shape(x)):
            plane = g.reduce("Prod", g.extents(x, 2, 4), [0], keepdims=False)
        else:
            plane = g.const(np.int64(count(g.shape(x)[2:])))
        mask = g.Cast(g.Mod(place, plane), to=g.FLOAT)  # ONNX counts places through the whole batch
        return self._append_empty(g, x, y, LOWEST), self._append_empty(g, x, mask, -1)

    def _average(self, g: OnnxBuilder, x: str) -> str:
        if self.global_pooling:
            return g.GlobalAveragePool(x)
        attributes = self._attributes(g, x)
        leading, trailing = attributes["pads"][:2], attributes["pads"][2:]
        if not any(leading) and not self.sparse:  # nothing but the image counts
            return g.AveragePool(x, **attributes, count_include_pad=0)
        y = _mean_with_pads(g, x, g.shape(x)[1], attributes)
        if leading == trailing and not self.sparse:
            return str(y)
        if not self.sparse and _open(g.shape(x)):
            return g.Div(y, self._part_inside(g, x, trailing))
        correction = divisor_correction(*self.axes(g.shape(x)[2:]))
        y = self._append_empty(g, x, y, 0)
        return str(y if np.all(correction == 1) else g.Mul(y, g.const(correction)))

    def _part_inside(self, g: OnnxBuilder, x: str, trailing: Shape) -> str:
        """How much of each window lies in the image padded on both sides, measured when it runs."""
        padded = g.Add(g.extents(x, 2, 4), g.ints([2 * p for p in self.pad]))
        ones = g.Expand(g.const(np.ones((1, 1, 1, 1), np.float32)), g.Concat(g.ints([1, 1]), padded, axis=0))
        pads = (0, 0, *(t - p for t, p in zip(trailing, self.pad, strict=True)))
        attributes = {"kernel_shape": self.kernel_size, "strides": self.stride, "pads": pads}
        return _mean_with_pads(g, ones, 1, attributes)

    def _stochastic(self, g: OnnxBuilder, x: str) -> str:
        """The sum of squares over the sum; 0 where that is not positive."""
        squares, mean = (self._mean(g, value, x) for value in (g.Mul(x, x), x))
        zero = g.const(np.float32(0))
        y = g.Where(g.Greater(mean, zero), g.Div(squares, mean), zero)
        return self._append_empty(g, x, str(y), 0)

    def _mean(self, g: OnnxBuilder, value: str, x: str) -> str:
        if self.global_pooling:
            return g.GlobalAveragePool(value)
        return _mean_with_pads(g, value, g.shape(x)[1], self._attributes(g, x))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.caffe_pooling(x[0], self)


def _mean_with_pads(g: OnnxBuilder, x: str, channels: int, attributes: dict[str, Any]) -> str:
    """The mean of whole windows, padding counted.

    Where the padding is not the same on all sides, ONNX Runtime before 1.25 counts it wrongly in the
    AveragePool of opset 19 and later; a convolution per channel says the same.
    """
    if g.opset < 19 or len(set(attributes["pads"])) == 1:
        return g.AveragePool(x, **attributes, count_include_pad=1)
    kernel = attributes["kernel_shape"]
    weight = np.full((channels, 1, *kernel), 1 / count(kernel), np.float32)
    return g.Conv(x, g.const(weight), **attributes, group=channels)


def _open(shape: Any) -> bool:
    """Whether an exported graph leaves the image's height or width open."""
    return not (shape.fixed(2) and shape.fixed(3))


def _check(p: Params, values: dict[str, Any]) -> None:
    kernel, stride, pad = values["kernel_size"], values["stride"], values["pad"]
    if values["global_pooling"]:
        if any(pad) or stride != (1, 1):
            raise p.fail("global_pooling goes with pad 0 and stride 1 only")
        return
    if min(kernel) < 1:
        raise p.fail("parameter 'kernel_size' is missing")
    if min(stride) < 1 or min(pad) < 0 or any(a >= k for a, k in zip(pad, kernel, strict=True)):
        raise p.fail(f"kernel {kernel}, stride {stride}, pad {pad}: the pad must be smaller than the kernel")
    if values["pool"] == "STOCHASTIC" and any(pad):
        raise p.fail("pool STOCHASTIC goes with pad 0 only")
