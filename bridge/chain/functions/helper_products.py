"""Helper: convolutions of channels-last images on the CPU, the fast way.

Kernels of 1 x 1 are one matrix product over all pixels, kernels of 3 x 3 at stride 1 take Winograd's way
(:mod:`~bridge.chain.functions.helper_winograd`), and others are a product with the windows as rows. A kernel for each
channel is a sum over its places. What a convolution lets follow per channel is done while its results are in the cache.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from bridge.chain.functions import helper_winograd as winograd
from bridge.chain.functions.helper_memory import take
from bridge.chain.functions.helper_parts import PART_BYTES, each, scratch, spans
from bridge.chain.functions.helper_rows import in_groups, place_in_batch
from bridge.schema import Shape, count

_WINDOWS = 1 << 21
"""Bytes of windows to hold at a time."""
_CHANNELS = 64
"""Channels with which Winograd's way is faster, at least: with fewer, the transformations take most of the time."""
_ROWS = 1024
"""Rows of a matrix product at least: each time the whole kernel is read."""


class WindowProducts:
    """A convolution of one geometry, for kernels of one group or of one channel each.

    Args:
        kernel: Extents (kh, kw).
        stride: Per axis.
        pad: Per axis, on both sides.
        dilation: Per axis.
        groups: 1, or the number of channels.
    """

    def __init__(self, kernel: Shape, stride: Shape, pad: Shape, dilation: Shape, groups: int) -> None:
        self.kernel, self.stride, self.pad, self.dilation, self.groups = kernel, stride, pad, dilation, groups
        self.plain = max(kernel) == 1 and not any(pad)

    def out(self, space: Shape) -> Shape:
        """Extents of the results of images of extents ``space``."""
        geometry = zip(space, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple((n + 2 * p - (d * (k - 1) + 1)) // s + 1 for n, k, s, p, d in geometry)

    def _by_tiles(self, images: int, out: Shape, channels: int) -> bool:
        """Whether to take Winograd's way, for a whole batch and the fewer of the inputs' and the outputs' channels."""
        once = self.kernel == (3, 3) and self.stride == self.dilation == (1, 1) and max(self.pad) <= 2
        return once and self.groups == 1 and channels >= _CHANNELS and winograd.is_faster(images, out)

    def forward(self, x: np.ndarray, W: np.ndarray, b: Any, positive: bool) -> np.ndarray:
        """Results (N, rows, columns, O) of images (N, H, W, C)."""
        out, (_, images), channels = self.out(x.shape[1:3]), place_in_batch(len(x)), x.shape[3]
        by_tiles = self._by_tiles(images, out, min(channels, W.shape[0]))
        if self.groups > 1:
            step = 1
        elif by_tiles:
            step = winograd.together(images, out, channels + W.shape[0])
        else:
            step = self._together(images, out, channels)
        x, own = in_groups(x, step)
        y = take((len(x), *out, W.shape[0]))
        zero = np.zeros(W.shape[0], np.float32)

        def finish(values: np.ndarray) -> None:
            if b is not None:
                np.add(values, b, out=values)
            if positive:
                np.maximum(values, zero, out=values)

        if self.groups > 1:
            self._each_channel(x, W, y, finish)
        elif by_tiles:
            self._tiled(x, W, y, finish)
        else:
            self._multiplied(x, W, y, finish, step)
        return y[own]

    # -- one matrix product

    def _multiplied(self, x: np.ndarray, W: np.ndarray, y: np.ndarray, finish: Any, step: int) -> None:
        if W.strides[1] <= W.strides[0]:  # copy values that lie near each other
            matrix = W.transpose(0, 2, 3, 1).reshape(W.shape[0], -1).T
        else:
            matrix = W.transpose(2, 3, 1, 0).reshape(-1, W.shape[0])
        windows = self._windows(x, y.shape[1:3])

        def work(part: Any) -> None:
            rows = windows[part].reshape(-1, len(matrix))
            own = y[part].reshape(-1, y.shape[3])
            for span in spans(len(rows), max(_ROWS, PART_BYTES // (4 * y.shape[3]))):
                np.matmul(rows[span], matrix, out=own[span])
                finish(own[span])

        each(work, self._parts(windows, step))

    def _together(self, images: int, out: Shape, channels: int) -> int:
        """How many images of a batch of so many are multiplied together: their windows fit in the cache."""
        size = 4 * count(out) * count(self.kernel) * channels
        return -(-images // -(-images // max(1, _WINDOWS // max(1, size))))

    @staticmethod
    def _parts(windows: np.ndarray, step: int) -> list[tuple[slice, slice]]:
        """Parts of ``step`` images, or of rows of an image whose windows do not fit in the cache."""
        images, rows = windows.shape[:2]
        size = 4 * windows[0].size
        if size <= _WINDOWS:
            return [(slice(i, min(i + step, images)), slice(None)) for i in range(0, images, step)]
        some = max(1, rows * _WINDOWS // size)
        return [(slice(i, i + 1), span) for i in range(images) for span in spans(rows, some)]

    def _windows(self, x: np.ndarray, out: Shape) -> np.ndarray:
        """A view of the windows, (N, rows, columns, kh, kw, C)."""
        x = self._bordered(x, out)
        n, h, w, c = x.strides
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return np.lib.stride_tricks.as_strided(
            x, (len(x), *out, *self.kernel, x.shape[3]), (n, h * sh, w * sw, h * dh, w * dw, c), writeable=False
        )

    def _bordered(self, x: np.ndarray, out: Shape, unit: int = 1) -> np.ndarray:
        """Images with their padding, as far as the windows reach; results are rounded up to a multiple of ``unit``."""
        ends = [
            (-(-o // unit) * unit - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(out, self.stride, self.kernel, self.dilation, strict=True)
        ]
        if not any(self.pad) and all(end <= n for end, n in zip(ends, x.shape[1:3], strict=True)):
            return x
        extents = [max(end, n + p) for end, n, p in zip(ends, x.shape[1:3], self.pad, strict=True)]
        padded = scratch("bordered", (len(x), *extents, x.shape[3]))
        (top, left), (height, width) = self.pad, x.shape[1:3]
        padded[:, :top] = padded[:, top + height :] = 0
        padded[:, :, :left] = padded[:, :, left + width :] = 0
        padded[:, top : top + height, left : left + width] = x
        return padded

    # -- Winograd's way

    def _tiled(self, x: np.ndarray, W: np.ndarray, y: np.ndarray, finish: Any) -> None:
        out = y.shape[1:3]
        padded, transformed = self._bordered(x, out, winograd.TILE), winograd.transformed_kernels(W)

        def work(part: winograd.TileRows) -> None:
            own = y[part.values]
            found = winograd.convolve(padded, transformed, part)[:, : own.shape[1], : own.shape[2]]
            finish(found)
            own[...] = found

        each(work, winograd.tile_rows(len(x), out, x.shape[3] + y.shape[3]))

    # -- a kernel for each channel

    def _each_channel(self, x: np.ndarray, W: np.ndarray, y: np.ndarray, finish: Any) -> None:
        padded, wide = self._bordered(x, y.shape[1:3]), self._wide(W, y.shape[2])

        def work(part: tuple[int, slice]) -> None:
            own = y[part]
            np.einsum("ijrqc,ijqc->rqc", self._places(padded, part, own.shape), wide, out=self._joined(own))
            finish(own)

        each(work, self._channel_parts(y.shape))

    def _channel_weights(self, x: np.ndarray, g: np.ndarray, shape: Shape) -> np.ndarray:
        padded = self._bordered(x, g.shape[1:3])

        def work(part: tuple[int, slice]) -> Any:
            own = g[part]
            return np.einsum("ijrqc,rqc->ijqc", self._places(padded, part, own.shape), self._joined(own))

        total = _summed(work, self._channel_parts(g.shape)).reshape(*self.kernel, -1, shape[0]).sum(axis=2)
        return np.ascontiguousarray(total.transpose(2, 0, 1)).reshape(shape)

    def _channel_parts(self, shape: Shape) -> list[tuple[int, slice]]:
        images, rows, columns, C = shape
        step = max(1, PART_BYTES // (4 * columns * C))
        return [(image, span) for image in range(images) for span in spans(rows, step)]

    def _joined(self, values: np.ndarray) -> np.ndarray:
        """Rows of pixels (..., columns, C) as (..., 1, columns C), where a window's neighbours lie side by side."""
        return values.reshape(*values.shape[:-2], 1, -1) if self.stride[1] == 1 else values

    def _wide(self, W: np.ndarray, columns: int) -> np.ndarray:
        """The kernels (kh, kw, columns, C) of a row of results, joined, so that operations run along the whole row."""
        places = W.reshape(-1, *self.kernel).transpose(1, 2, 0)[:, :, None]
        return self._joined(np.ascontiguousarray(np.broadcast_to(places, (*self.kernel, columns, W.shape[0]))))

    def _places(self, padded: np.ndarray, part: tuple[int, slice], shape: Shape) -> np.ndarray:
        """For each place of the kernel, the values that it meets: a view (kh, kw, rows, columns, C), joined."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        image = padded[part[0], part[1].start * sh :]
        h, w, c = image.strides
        joined = (shape[0], 1, shape[1] * shape[2]) if sw == 1 else shape
        return np.lib.stride_tricks.as_strided(
            image, (*self.kernel, *joined), (h * dh, w * dw, h * sh, w * sw, c), writeable=False
        )

    # -- gradients

    def backward(self, g: np.ndarray, W: np.ndarray, space: Shape) -> np.ndarray:
        """The gradient of the images (N, H, W, C) of extents ``space``, from that of the results."""
        turned = tuple(d * (k - 1) - p for d, k, p in zip(self.dilation, self.kernel, self.pad, strict=True))
        if self.stride == (1, 1) and min(turned) >= 0:
            back = WindowProducts(self.kernel, (1, 1), turned, self.dilation, self.groups)
            flipped = W[:, :, ::-1, ::-1]
            return back.forward(g, flipped if self.groups > 1 else flipped.swapaxes(0, 1), None, False)
        return self._scattered(g, W, space)

    def _scattered(self, g: np.ndarray, W: np.ndarray, space: Shape) -> np.ndarray:
        """The same for any stride: what each place of the kernel gives is added to the values that it meets."""
        (sh, sw), (dh, dw), out = self.stride, self.dilation, g.shape[1:3]
        extents = [
            max((o - 1) * s + (k - 1) * d + 1, n + p)
            for o, s, k, d, n, p in zip(out, self.stride, self.kernel, self.dilation, space, self.pad, strict=True)
        ]
        C = W.shape[1] * self.groups
        gx = take((len(g), *extents, C))
        gx[...] = 0
        places = [np.ascontiguousarray(W[:, :, i, j]) for i in range(self.kernel[0]) for j in range(self.kernel[1])]

        def work(image: int) -> None:
            for span in spans(out[0], max(1, PART_BYTES // (4 * out[1] * max(C, g.shape[3])))):
                rows = g[image, span].reshape(-1, g.shape[3])
                for place, kernel in enumerate(places):
                    i, j = divmod(place, self.kernel[1])
                    top, left = span.start * sh + i * dh, j * dw
                    down, right = (span.stop - span.start - 1) * sh + 1, (out[1] - 1) * sw + 1
                    own = gx[image, top : top + down : sh, left : left + right : sw]
                    own += (rows * kernel[:, 0] if self.groups > 1 else rows @ kernel).reshape(own.shape)

        each(work, range(len(g)))
        return gx[:, self.pad[0] : self.pad[0] + space[0], self.pad[1] : self.pad[1] + space[1]]

    def weight_gradient(self, x: np.ndarray, g: np.ndarray, shape: Shape) -> np.ndarray:
        """The gradient of the weight, of this shape, from images and the gradient of the results."""
        if self.groups > 1:
            return self._channel_weights(x, g, shape)
        geometry = place_in_batch(len(x))[1], g.shape[1:3]
        if self._by_tiles(*geometry, min(shape[:2])):
            return self._tiled_weights(x, g)
        windows = self._windows(x, g.shape[1:3])
        size = windows[0, 0, 0].size
        # sums of few terms each, and then of these sums: rounding errors are a fraction of those of one long sum
        step = min(self._together(*geometry, shape[1]), max(1, _ROWS // count(geometry[1])))

        def work(part: Any) -> np.ndarray:
            rows = g[part].reshape(-1, shape[0])
            return np.matmul(rows.T, windows[part].reshape(-1, size), out=take((shape[0], size)))

        total: np.ndarray = _summed(work, self._parts(windows, step)).reshape(shape[0], *self.kernel, shape[1])
        if self.kernel == (1, 1):
            return total.reshape(shape)
        gradient: np.ndarray = take(shape)
        gradient[...] = total.transpose(0, 3, 1, 2)
        return gradient

    def _tiled_weights(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        unit = winograd.TILE
        padded = self._bordered(x, g.shape[1:3], unit)
        down, across = (-(-extent // unit) * unit for extent in g.shape[1:3])
        if (down, across) != g.shape[1:3]:
            whole = scratch("whole", (len(g), down, across, g.shape[3]))
            whole[:, g.shape[1] :] = whole[:, :, g.shape[2] :] = 0
            whole[:, : g.shape[1], : g.shape[2]] = g
            g = whole

        def work(part: winograd.TileRows) -> np.ndarray:
            products, tiles = winograd.spread_gradient(g[part.values], part), winograd.tiles(padded, part)
            return np.matmul(products.swapaxes(1, 2), tiles, out=take((36, products.shape[2], tiles.shape[2])))

        return winograd.kernel_gradient(
            _summed(work, winograd.tile_rows(len(g), g.shape[1:3], x.shape[3] + g.shape[3]))
        )


def _summed(work: Any, parts: Any) -> Any:
    """The sum of what all parts give, added in their order."""
    todo, waiting, lock = list(parts), dict[int, np.ndarray](), threading.Lock()
    total: list[np.ndarray] = []

    def add(place: int) -> None:
        found = work(todo[place])
        with lock:
            waiting[place] = found
            for due in sorted(waiting):
                if due != len(done):
                    break
                done.append(due)
                if total:
                    np.add(total[0], waiting.pop(due), out=total[0])
                else:
                    total.append(waiting.pop(due))

    done: list[int] = []
    each(add, range(len(todo)))
    return total[0]
