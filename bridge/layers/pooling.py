"""Pooling over two spatial axes, with Caffe's rounding and borders."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import CaffeLayer, Params, field_pair, layer_type
from bridge.schema import Shape


@layer_type("Pooling")
class Pooling(CaffeLayer):
    """MAX, AVE or STOCHASTIC pooling of the last two of four axes.

    The number of windows is rounded up (``round_mode`` CEIL); with padding, a last window
    that would start behind the image and its leading padding is dropped. AVE divides by the
    part of the window within the image padded on both sides. At test time STOCHASTIC is
    the average weighted by the values themselves.

    Attributes:
        pool: The kind of pooling.
        kernel_size, stride, pad: (height, width).
        global_pooling: One window over the whole image.
        round_mode: Rounding of the number of windows.

    Source: caffe.proto ``PoolingParameter``, pooling_layer.cpp; ONNX ``MaxPool``, ``AveragePool``.
    """

    message = "pooling_param"

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
            pair = field_pair(p, [key], (f"{name}_h", f"{name}_w")) or (default,)
            values[key] = pair * 2 if len(pair) == 1 else pair
        _check(p, values)
        return values

    def window(self, space: Shape) -> tuple[Shape, Shape, Shape]:
        """Kernel, stride and pad, each (height, width), for an image of extents ``space``."""
        return (space, (1, 1), (0, 0)) if self.global_pooling else (self.kernel_size, self.stride, self.pad)

    def trailing_pad(self) -> Shape:
        """Padding behind the image that makes floor rounding give Caffe's windows.

        Rounding up is padding by ``stride - 1`` more; dropping windows that start in the
        trailing padding is padding by less than a kernel. So it needs no extents.
        """
        extra = 1 if self.round_mode == "CEIL" else 0
        return tuple(
            min(p + extra * (s - 1), k - 1) for k, s, p in zip(self.kernel_size, self.stride, self.pad, strict=True)
        )

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) != 4:
            raise self.fail(f"the input has {len(bottoms[0])} axes, expected 4")
        space = tuple(bottoms[0][2:])
        out = tuple(
            self._extent(n, k, s, p, any(self.pad)) for n, k, s, p in zip(space, *self.window(space), strict=True)
        )
        return ((*bottoms[0][:2], *out),) * max(1, len(self.tops))

    def _extent(self, n: int, k: int, s: int, p: int, padded: bool) -> int:
        steps = n + 2 * p - k
        if steps < 0 and self.round_mode == "FLOOR" or -steps >= s:
            raise self.fail(f"kernel {k} does not fit the input {n}, padded by {p}")
        out = (-(-steps // s) if self.round_mode == "CEIL" else steps // s) + 1
        if padded and not self.global_pooling and (out - 1) * s >= n + p:
            out -= 1
        return out

    def _refuse_empty_windows(self, space: Shape) -> None:
        """Windows wholly outside the image: Caffe gives -FLT_MAX or NaN, and so would nobody else."""
        out = self.infer((1, 1, *space))[0][2:]
        for n, k, s, p, o in zip(space, *self.window(space), out, strict=True):
            if (o - 1) * s - p >= n or s > k and self.trailing_windows(n, k, s, p) != o:
                raise UnsupportedLayerError(
                    f"stride {s} is larger than kernel {k}: the last window lies outside the input of {n}",
                    where=self.label,
                )

    def trailing_windows(self, n: int, k: int, s: int, p: int) -> int:
        """Windows along one axis after padding by ``pad`` in front, ``trailing_pad`` behind."""
        extra = 1 if self.round_mode == "CEIL" else 0
        return (n + p + min(p + extra * (s - 1), k - 1) - k) // s + 1

    def to_onnx(self, g: Any, *x: str) -> Any:
        if self.pool == "STOCHASTIC":
            # the mean of the values weighted by themselves, 0 where they are all 0
            squares = self._sum_ratio(g, x[0])
            return squares
        if self.global_pooling and len(self.tops) < 2:
            return (g.GlobalMaxPool if self.pool == "MAX" else g.GlobalAveragePool)(x[0])
        return self._max(g, x[0]) if self.pool == "MAX" else self._average(g, x[0])

    def _attributes(self, g: Any, x: str) -> dict[str, Any]:
        if self.global_pooling:
            return {"kernel_shape": tuple(g.shape(x)[2:])}
        if any(s > k for k, s in zip(self.kernel_size, self.stride, strict=True)):
            self._refuse_empty_windows(tuple(g.shape(x)[2:]))
        return {"kernel_shape": self.kernel_size, "strides": self.stride, "pads": self.pad + self.trailing_pad()}

    def _max(self, g: Any, x: str) -> Any:
        attributes = self._attributes(g, x)
        if len(self.tops) < 2:
            return g.MaxPool(x, **attributes)
        # the second top is the place of the maximum in its (H, W) plane, as a float
        y, place = g.op("MaxPool", x, outputs=2, **attributes)
        height, width = g.shape(x)[2:]
        plane = g.Mod(place, g.const(np.array(height * width, np.int64)))
        return y, g.Cast(plane, to=1)

    def _average(self, g: Any, x: str) -> str:
        attributes = self._attributes(g, x)
        pads = attributes.get("pads", (0, 0, 0, 0))
        if pads[:2] == (0, 0):  # nothing but the image counts
            return str(g.AveragePool(x, **attributes, count_include_pad=0))
        y = g.AveragePool(x, **attributes, count_include_pad=1)
        if pads[:2] == pads[2:]:
            return str(y)
        return str(g.Mul(y, g.const(self.correction(tuple(g.shape(x)[2:])))))

    def correction(self, space: Shape) -> np.ndarray:
        """Kernel area over the area that Caffe divides by, (out_h, out_w) float32."""
        rows, columns = (
            np.array([k / (min(i * s - p + k, n + p) - (i * s - p)) for i in range(out)])
            for n, k, s, p, out in zip(space, *self.window(space), self.infer((1, 1, *space))[0][2:], strict=True)
        )
        return np.asarray(np.outer(rows, columns), np.float32)

    def _sum_ratio(self, g: Any, x: str) -> str:
        attributes = self._attributes(g, x)
        mean = g.AveragePool(x, **attributes, count_include_pad=1)
        square = g.AveragePool(g.Mul(x, x), **attributes, count_include_pad=1)
        empty = g.Equal(mean, g.const(np.float32(0)))
        return str(g.Where(empty, g.const(np.float32(0)), g.Div(square, mean)))

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
