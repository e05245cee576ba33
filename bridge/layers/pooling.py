"""Pooling over two spatial axes, with Caffe's rounding and borders."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from bridge.layers.base import CaffeLayer, Params, field_pair, layer_type
from bridge.schema import Shape

LOWEST = np.float32(-3.4028235e38)
"""The maximum of no values at all: ``-FLT_MAX``."""


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
        round_mode: Rounding of the number of windows.

    Source: caffe.proto ``PoolingParameter``, pooling_layer.cpp, pooling_layer.cu; ONNX
    ``MaxPool``, ``AveragePool``.
    """

    message = "pooling_param"
    ignored = frozenset({"engine"})
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
        for name, default in (("kernel", 0), ("stride", 1), ("pad", 0)):
            key = "kernel_size" if name == "kernel" else name
            sides = (f"{name}_h", f"{name}_w")
            if (sides[0] in p) != (sides[1] in p):
                raise p.fail(f"has one of '{sides[0]}' and '{sides[1]}', expected both")
            pair = field_pair(p, [key], sides) or (default,)
            values[key] = pair * 2 if len(pair) == 1 else pair
        _check(p, values)
        return values

    def window(self, space: Shape) -> tuple[Shape, Shape, Shape]:
        """Kernel, stride and pad, each (height, width), for an image of extents ``space``."""
        return (space, (1, 1), (0, 0)) if self.global_pooling else (self.kernel_size, self.stride, self.pad)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes, expected 4")
        if len(self.tops) > 1 and self.pool != "MAX":
            raise self.fail(f"has {len(self.tops)} tops, expected 1 with {self.pool}")
        return ((*bottoms[0][:2], *self.windows(bottoms[0][2:])),) * max(1, len(self.tops))

    def windows(self, space: Shape) -> Shape:
        """How many windows there are along each axis."""
        clip = any(self.pad) and not self.global_pooling
        return tuple(
            self._count(n, k, s, p) - (clip and (self._count(n, k, s, p) - 1) * s >= n + p)
            for n, k, s, p in zip(space, *self.window(space), strict=True)
        )

    def _count(self, n: int, k: int, s: int, p: int) -> int:
        steps = n + 2 * p - k
        count = (-(-steps // s) if self.round_mode == "CEIL" else steps // s) + 1
        if count < 1:
            raise self.fail(f"kernel {k} does not fit the input {n}, padded by {p}")
        return count

    def starting_inside(self, space: Shape) -> Shape:
        """How many windows along each axis start before the end of the image; the others are empty."""
        return tuple(
            min(count, -(-(n + p) // s))
            for count, n, s, p in zip(self.windows(space), space, *self.window(space)[1:], strict=True)
        )

    def trailing_pad(self, space: Shape | None) -> Shape:
        """Padding behind the image with which rounding down gives the windows that start inside.

        Rounding up is padding by ``stride - 1`` more, and dropping windows that start in the
        trailing padding is padding by less than a kernel: so the extents do not matter while
        no stride is larger than its kernel.

        Args:
            space: The image's extents; needed where a stride is larger.
        """
        if space is None:
            extra = 1 if self.round_mode == "CEIL" else 0
            return tuple(
                min(p + extra * (s - 1), k - 1) for k, s, p in zip(self.kernel_size, self.stride, self.pad, strict=True)
            )
        return tuple(
            max(0, (count - 1) * s + k - n - p)
            for count, n, k, s, p in zip(self.starting_inside(space), space, *self.window(space), strict=True)
        )

    @property
    def sparse(self) -> bool:
        """Whether a stride is larger than its kernel, so that windows can be empty."""
        return not self.global_pooling and any(s > k for k, s in zip(self.kernel_size, self.stride, strict=True))

    def divisor_correction(self, space: Shape) -> np.ndarray:
        """Kernel area over the area that AVE divides by, (rows, columns) float32; NaN over none."""
        rows, columns = (
            np.minimum(np.arange(count) * s + k, n + 2 * p) - np.arange(count) * s
            for count, n, k, s, p in zip(self.windows(space), space, *self.window(space), strict=True)
        )
        area = np.outer(rows, columns).astype(np.float64)
        kernel = self.window(space)[0]
        return np.asarray(kernel[0] * kernel[1] / np.where(area == 0, np.nan, area), np.float32)

    def to_onnx(self, g: Any, *x: str) -> Any:
        lowering = {"MAX": self._max, "AVE": self._average, "STOCHASTIC": self._stochastic}
        return lowering[self.pool](g, x[0])

    def _attributes(self, g: Any, x: str) -> dict[str, Any]:
        if self.global_pooling:
            return {"kernel_shape": tuple(g.shape(x)[2:])}
        trailing = self.trailing_pad(tuple(g.shape(x)[2:]) if self.sparse else None)
        return {"kernel_shape": self.kernel_size, "strides": self.stride, "pads": self.pad + trailing}

    def _append_empty(self, g: Any, x: str, y: str, value: float) -> str:
        """The empty windows behind those that start inside the image."""
        if not self.sparse:
            return y
        space = tuple(g.shape(x)[2:])
        empty = [a - b for a, b in zip(self.windows(space), self.starting_inside(space), strict=True)]
        return str(g.Pad(y, g.ints([0] * 6 + empty), g.const(np.float32(value)))) if any(empty) else y

    def _max(self, g: Any, x: str) -> Any:
        if len(self.tops) < 2:
            if self.global_pooling:
                return g.GlobalMaxPool(x)
            return self._append_empty(g, x, g.MaxPool(x, **self._attributes(g, x)), LOWEST)
        y, place = g.op("MaxPool", x, outputs=2, **self._attributes(g, x))
        height, width = g.shape(x)[2:]
        plane = g.Cast(g.Mod(place, g.const(np.int64(height * width))), to=g.FLOAT)
        return self._append_empty(g, x, y, LOWEST), self._append_empty(g, x, plane, -1)

    def _average(self, g: Any, x: str) -> str:
        if self.global_pooling:
            return str(g.GlobalAveragePool(x))
        attributes = self._attributes(g, x)
        leading, trailing = attributes["pads"][:2], attributes["pads"][2:]
        if not any(leading) and not self.sparse:  # nothing but the image counts
            return str(g.AveragePool(x, **attributes, count_include_pad=0))
        y = g.AveragePool(x, **attributes, count_include_pad=1)
        if leading == trailing and not self.sparse:
            return str(y)
        correction = self.divisor_correction(tuple(g.shape(x)[2:]))
        y = self._append_empty(g, x, y, 0)
        return str(y if np.all(correction == 1) else g.Mul(y, g.const(correction)))

    def _stochastic(self, g: Any, x: str) -> str:
        """The sum of squares over the sum; 0 where that is not positive."""
        squares, mean = (self._mean(g, value, x) for value in (g.Mul(x, x), x))
        zero = g.const(np.float32(0))
        y = g.Where(g.Greater(mean, zero), g.Div(squares, mean), zero)
        return self._append_empty(g, x, str(y), 0)

    def _mean(self, g: Any, value: str, x: str) -> str:
        if self.global_pooling:
            return str(g.GlobalAveragePool(value))
        return str(g.AveragePool(value, **self._attributes(g, x), count_include_pad=1))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.caffe_pooling(x[0], self)


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
