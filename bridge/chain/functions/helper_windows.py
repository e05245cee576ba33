"""Helper: maxima and sums over the windows of a pooling.

On the CPU, Chainer copies every window before it reduces it. This module takes one place of the kernel after
the other, for all windows at once: nothing is copied, no padding is needed, and maxima are taken along
rows and columns separately. Sums have Caffe's order, and so its bits.
The windows are Caffe's; :class:`~bridge.layers.pooled_axis.PooledAxis` says where they are.

Source: pooling_layer.cpp.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel, contiguous
from bridge.chain.functions.helper_parts import each, spans
from bridge.layers.pooled_axis import LOWEST, PooledAxis

F = chainer.functions
Axes = tuple[PooledAxis, PooledAxis]
_Place = tuple[tuple[slice, ...], tuple[slice, ...]]
_ALL = slice(None)
_GEOMETRY = "int H, int W, int rows, int columns, int kh, int kw, int sh, int sw, int ph, int pw"
_WINDOW = """
        int q = i % columns, p = i / columns % rows;
        long long plane = i / columns / rows;
        int top = MOST(p * sh - ph, 0), bottom = LEAST(p * sh - ph + kh, H);
        int left = MOST(q * sw - pw, 0), right = LEAST(q * sw - pw + kw, W);
"""
"""The window of result ``i``, cut at the edges of the input."""
_VALUE = """
        int w = i % W, h = i / W % H;
        long long plane = i / W / H;
        int first_p = h + ph < kh ? 0 : (h + ph - kh) / sh + 1, last_p = LEAST((h + ph) / sh, rows - 1);
        int first_q = w + pw < kw ? 0 : (w + pw - kw) / sw + 1, last_q = LEAST((w + pw) / sw, columns - 1);
"""
"""The windows that hold value ``i`` of the input."""
_max_forward = Kernel(
    "max_pooling",
    f"""extern "C" __global__ void max_pooling(const float* x, float* y, int* place, int n, {_GEOMETRY}) {{
    EACH(i, n) {{{_WINDOW}
        float best = -3.402823466e+38f;
        int at = -1;
        for (int h = top; h < bottom; ++h)
            for (int w = left; w < right; ++w) {{
                float value = x[(plane * H + h) * W + w];
                if (value > best) {{ best = value; at = h * W + w; }}
            }}
        y[i] = best;
        place[i] = at;
    }}
}}""",
)
_max_backward = Kernel(
    "max_pooling_gradient",
    f"""extern "C" __global__ void max_pooling_gradient(
    const float* gy, const int* place, float* gx, int n, {_GEOMETRY}) {{
    EACH(i, n) {{{_VALUE}
        float sum = 0;
        for (int p = first_p; p <= last_p; ++p)
            for (int q = first_q; q <= last_q; ++q) {{
                long long window = (plane * rows + p) * columns + q;
                if (place[window] == h * W + w) sum += gy[window];
            }}
        gx[i] = sum;
    }}
}}""",
)
_sum_forward = Kernel(
    "window_sum",
    f"""extern "C" __global__ void window_sum(const float* x, float* y, int n, {_GEOMETRY}) {{
    EACH(i, n) {{{_WINDOW}
        float sum = 0;
        for (int h = top; h < bottom; ++h)
            for (int w = left; w < right; ++w) sum += x[(plane * H + h) * W + w];
        y[i] = sum;
    }}
}}""",
)
_sum_backward = Kernel(
    "window_sum_gradient",
    f"""extern "C" __global__ void window_sum_gradient(const float* gy, float* gx, int n, {_GEOMETRY}) {{
    EACH(i, n) {{{_VALUE}
        float sum = 0;
        for (int p = first_p; p <= last_p; ++p)
            for (int q = first_q; q <= last_q; ++q) sum += gy[(plane * rows + p) * columns + q];
        gx[i] = sum;
    }}
}}""",
)


def _geometry(axes: Axes) -> list[int]:
    """The arguments of the kernels that say where the windows are."""
    names = ("extent", "count", "kernel", "stride", "pad")
    return [getattr(axis, name) for name in names for axis in axes]


_MASKS = 1 << 20
"""Bytes of masks to keep at a time; at least those of one image."""


def _places(axis: PooledAxis) -> list[tuple[slice, slice]]:
    """For each place of the kernel, the windows in which it is inside the input, and the values it covers there."""
    places = []
    for place in range(axis.kernel):
        first = max(0, -(-(axis.pad - place) // axis.stride))
        stop = min(axis.count, -(-(axis.extent + axis.pad - place) // axis.stride))
        start = first * axis.stride + place - axis.pad
        if first < stop:
            places.append((slice(first, stop), slice(start, start + (stop - first - 1) * axis.stride + 1, axis.stride)))
    return places


def _both(axes: Axes) -> Iterator[_Place]:
    """The same as :func:`_places` for two axes, (N, C, H, W), row by row of the kernel."""
    for (rows, from_rows), (columns, from_columns) in itertools.product(*map(_places, axes)):
        yield (_ALL, _ALL, rows, columns), (_ALL, _ALL, from_rows, from_columns)


def _maxima(x: np.ndarray, axes: Axes) -> np.ndarray:
    """The greatest value of each window of ``x`` (N, C, H, W), as (N, C, rows, columns), in memory as ``x`` lies."""
    rows, columns = axes
    maxima = np.full_like(x, LOWEST, shape=(*x.shape[:2], rows.count, columns.count))

    def work(image: int) -> None:
        lines = np.full_like(x[image], LOWEST, shape=(x.shape[1], rows.count, x.shape[3]))
        for windows, values in _places(rows):
            np.fmax(lines[:, windows], x[image, :, values], out=lines[:, windows])
        own = maxima[image]
        for windows, values in _places(columns):
            np.fmax(own[..., windows], lines[..., values], out=own[..., windows])

    each(work, range(len(x)))
    return maxima


def first_places(x: np.ndarray, y: np.ndarray, axes: Axes) -> np.ndarray:
    """The first place in the plane (H, W) where each window has its value in ``y``; -1 where none has it.

    Args:
        x: (N, C, H, W).
        y: (N, C, rows, columns), one value per window.
        axes: The windows along height and width.

    Returns:
        int64 of the shape of ``y``. In a plane of 4 columns, place 6 is row 1, column 2.
    """
    plane = np.broadcast_to(np.arange(x.shape[2] * x.shape[3]).reshape(x.shape[2:]), x.shape)
    place = np.full(y.shape, -1)
    for windows, values in reversed(list(_both(axes))):
        np.copyto(place[windows], plane[values], where=x[values] == y[windows])
    return place


class MaxPooling(chainer.FunctionNode):
    """The maximum of each window; ``-FLT_MAX`` where the window is empty or has no greater value.

    The gradient goes to the first of equal maxima, as in Caffe, and NaN is ignored.
    """

    def __init__(self, axes: Axes) -> None:
        self.axes, self.place = axes, None

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The maxima (N, C, rows, columns) of (N, C, H, W)."""
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        return (_maxima(inputs[0], self.axes),)

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        """The same on a GPU, float32; the places of the maxima are in :attr:`place`."""
        x, xp = contiguous(inputs[0])
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        y = xp.empty((*x.shape[:2], *(axis.count for axis in self.axes)), x.dtype)
        self.place = xp.empty(y.shape, np.int32)
        _max_forward(xp, y.size, x, y, self.place, y.size, *_geometry(self.axes))
        return (y,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input."""
        (x,), (y,) = self.get_retained_inputs(), self.get_retained_outputs()
        return _MaxGradient(self.axes, x.array, y.array, self.place).apply(grad_outputs)


class _MaxGradient(chainer.FunctionNode):
    def __init__(self, axes: Axes, x: Any, y: Any, place: Any = None) -> None:
        self.axes, self.x, self.y, self.place = axes, x, y, place

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        gy, xp = contiguous(inputs[0])
        gx = xp.empty(self.x.shape, gy.dtype)
        _max_backward(xp, gx.size, gy, self.place, gx, gx.size, *_geometry(self.axes))
        return (gx,)

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        gx, gy = np.zeros_like(self.x), inputs[0]
        if gy.strides != self.y.strides:
            gy = np.empty_like(self.y)
            gy[...] = inputs[0]
        places = list(_both(self.axes))
        step = max(1, _MASKS * len(self.y) // max(1, len(places) * self.y.size))

        def work(images: slice) -> None:
            self._add(places, self.x[images], self.y[images], gy[images], gx[images])

        each(work, spans(len(gx), step))
        return (gx,)

    @staticmethod
    def _add(places: list[_Place], x: np.ndarray, y: np.ndarray, gy: np.ndarray, gx: np.ndarray) -> None:
        """Add each window's gradient to its first maximum; to a maximum of several windows, in the windows' order."""
        free, chosen = np.ones_like(y, bool), []
        for windows, values in places:
            first = x[values] == y[windows]
            first &= free[windows]
            free[windows] ^= first
            chosen.append(first)
        for (windows, values), first in zip(reversed(places), reversed(chosen), strict=True):
            gx[values] += gy[windows] * first

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> tuple[Any]:
        place = first_places(self.x, self.y, self.axes) if self.place is None else self.place
        planes = place.shape[0] * place.shape[1]
        flat = F.reshape(grad_outputs[0], (planes, -1))
        taken = flat[flat.xp.arange(planes)[:, None], place.reshape(planes, -1)]
        return (F.reshape(taken, place.shape) * (place >= 0).astype(taken.dtype),)


class WindowSum(chainer.FunctionNode):
    """The sum over each window, one value after the other as in Caffe; 0 where the window is empty."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The sums (N, C, rows, columns) of (N, C, H, W)."""
        sums = np.zeros_like(inputs[0], shape=(*inputs[0].shape[:2], *(axis.count for axis in self.axes)))
        for windows, values in _both(self.axes):
            sums[windows] += inputs[0][values]
        return (sums,)

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        """The same on a GPU, float32."""
        x, xp = contiguous(inputs[0])
        sums = xp.empty((*x.shape[:2], *(axis.count for axis in self.axes)), x.dtype)
        _sum_forward(xp, sums.size, x, sums, sums.size, *_geometry(self.axes))
        return (sums,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        """The gradient of the input."""
        return _WindowSumGradient(self.axes).apply(grad_outputs)


class _WindowSumGradient(chainer.FunctionNode):
    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        gx = np.zeros_like(inputs[0], shape=(*inputs[0].shape[:2], *(axis.extent for axis in self.axes)))
        for windows, values in reversed(list(_both(self.axes))):
            gx[values] += inputs[0][windows]
        return (gx,)

    def forward_gpu(self, inputs: tuple[Any]) -> tuple[Any]:
        gy, xp = contiguous(inputs[0])
        gx = xp.empty((*gy.shape[:2], *(axis.extent for axis in self.axes)), gy.dtype)
        _sum_backward(xp, gx.size, gy, gx, gx.size, *_geometry(self.axes))
        return (gx,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple[Any]) -> Any:
        return WindowSum(self.axes).apply(grad_outputs)
