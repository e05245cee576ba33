"""Helper: convolutions of 3 x 3 at stride 1 with a quarter of the multiplications, by Winograd's F(4 x 4, 3 x 3).

A tile of 6 x 6 values gives 4 x 4 results. Tiles and kernels are transformed, multiplied place by place, as one
matrix product over channels for each of the 36 places, and transformed back. Images are channels-last, so that each
step of a transformation is one operation on long rows. Results differ from those of a plain sum by up to 1e-5 of the
largest.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bridge.chain.functions.helper_memory import take
from bridge.schema import Shape

_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
"""G, which transforms a kernel along one axis."""
_BOTH = np.kron(_KERNEL, _KERNEL).astype(np.float32)
"""(36, 9): G along both axes."""
_CHUNK = 3 << 20
"""Bytes of transformed tiles to hold at a time, so that they stay in the cache."""
_LEAST = 128
"""Tiles to multiply at a time at least: each time all kernels are read."""
TILE = 4


class TileRows(NamedTuple):
    """Some rows of tiles of some images.

    Attributes:
        images: Which images.
        first: The first row of tiles.
        down: How many rows.
        across: Tiles in a row.
    """

    images: slice
    first: int
    down: int
    across: int

    @property
    def values(self) -> tuple[slice, slice]:
        """The images, and their rows of results."""
        return self.images, slice(self.first * TILE, (self.first + self.down) * TILE)


def is_faster(images: int, out: Shape) -> bool:
    """Whether there are enough tiles, for results of extents ``out``, to make up for the kernels' transformation."""
    rows, columns = out
    tiles = -(-rows // TILE) * -(-columns // TILE)
    return images * tiles >= 48 and rows * columns >= 9 * tiles


def transformed_kernels(W: np.ndarray) -> np.ndarray:
    """Transformed kernels (36, I, O), from ``W`` (O, I, 3, 3)."""
    O, I = W.shape[:2]  # noqa: E741
    made = take((36, O, I))
    np.matmul(_BOTH, W.reshape(O * I, 9).T, out=made.reshape(36, O * I))
    return made.swapaxes(1, 2)


def kernel_gradient(transformed: np.ndarray) -> np.ndarray:
    """The gradient of ``W`` (O, I, 3, 3), from that of the transformed kernels (36, O, I)."""
    _, O, I = transformed.shape  # noqa: E741
    gradient = take((O, I, 3, 3))
    gradient.reshape(O * I, 9)[...] = (_BOTH.T @ transformed.reshape(36, O * I)).T
    return gradient


def together(images: int, out: Shape, channels: int) -> int:
    """How many images of a batch are multiplied together at most; the arguments are those of :func:`tile_rows`."""
    down, across = (-(-extent // TILE) for extent in out)
    return max(1, min(images, _most(channels) // (down * across)))


def _most(channels: int) -> int:
    """Tiles that fit in the cache."""
    return max(_LEAST, _CHUNK // (36 * 4 * channels))


def tile_rows(images: int, out: Shape, channels: int) -> Iterator[TileRows]:
    """The tiles of a batch, in parts that fit in the cache.

    Args:
        images: Number of images.
        out: Extents of the results of an image.
        channels: Channels of tiles and results together.
    """
    down, across = (-(-extent // TILE) for extent in out)
    number = together(images, out, channels)
    step = down if number > 1 else max(1, min(down, _most(channels) // across))
    step = -(-down // -(-down // step))  # about as many rows in each part
    for image in range(0, images, number):
        for first in range(0, down, step):
            yield TileRows(slice(image, min(images, image + number)), first, min(step, down - first), across)


def tiles(padded: np.ndarray, part: TileRows) -> np.ndarray:
    """Transformed tiles (36, tiles, C) of a part, from images (N, H, W, C) with their padding."""
    image = padded[part.images, part.first * TILE : (part.first + part.down) * TILE + 2]
    span = part.down * TILE - 3
    down = take((6, len(image), part.down, *image.shape[2:]))
    _transform([image[:, i : i + span : TILE] for i in range(6)], down)
    both = take((6, 6, len(image), part.down, part.across, image.shape[3]))
    span = part.across * TILE - 3
    _transform([down[..., j : j + span : TILE, :] for j in range(6)], both.swapaxes(0, 1))
    return both.reshape(36, -1, image.shape[3])


def _transform(d: list[np.ndarray], out: np.ndarray) -> None:
    """The transformation of six values along an axis into six, B."""
    a, b = np.empty_like(out[0]), np.empty_like(out[0])
    np.multiply(d[2], -4, out=a)
    a += d[4]
    np.multiply(d[1], -4, out=b)
    b += d[3]
    np.add(a, b, out=out[1])
    np.subtract(a, b, out=out[2])
    np.subtract(d[4], d[2], out=a)
    np.subtract(d[3], d[1], out=b)
    b *= 2
    np.add(a, b, out=out[3])
    np.subtract(a, b, out=out[4])
    np.subtract(d[0], d[2], out=out[0])
    out[0] *= 4
    out[0] += a
    np.subtract(d[5], d[3], out=out[5])
    b *= 2
    out[5] -= b


def results(products: np.ndarray, part: TileRows) -> np.ndarray:
    """Results (n, rows, columns, O) of a part, whole tiles, from products (36, tiles, O)."""
    O = products.shape[2]  # noqa: E741
    m = products.reshape(6, 6, -1, part.down, part.across, O)
    n = m.shape[2]
    down = take((4, 6, n, part.down, part.across, O))
    _inverse(m, down)
    y = take((n, part.down, 4, part.across, 4, O))
    _inverse(down.swapaxes(0, 1), y.transpose(4, 2, 0, 1, 3, 5))
    return y.reshape(n, part.down * TILE, part.across * TILE, O)


def _inverse(m: np.ndarray, out: np.ndarray) -> None:
    """The transformation of six values along an axis back into four, A."""
    a, b = np.empty(m[0].shape, np.float32), np.empty(m[0].shape, np.float32)
    np.add(m[1], m[2], out=a)
    np.add(m[3], m[4], out=b)
    np.add(m[0], a, out=out[0])
    out[0] += b
    b *= 4
    np.add(a, b, out=out[2])
    np.subtract(m[1], m[2], out=a)
    np.subtract(m[3], m[4], out=b)
    b *= 2
    np.add(a, b, out=out[1])
    b *= 4
    np.add(a, b, out=out[3])
    out[3] += m[5]


def spread_gradient(g: np.ndarray, part: TileRows) -> np.ndarray:
    """The gradient of products (36, tiles, O), from that of the part's results (n, rows, columns, O), whole tiles."""
    n, O = len(g), g.shape[3]  # noqa: E741
    g = g.reshape(n, part.down, 4, part.across * TILE, O)
    down = take((6, n, part.down, part.across * TILE, O))
    _adjoint([g[:, :, i] for i in range(4)], down)
    down = down.reshape(6, n, part.down, part.across, 4, O)
    both = take((6, 6, n, part.down, part.across, O))
    _adjoint([down[..., j, :] for j in range(4)], both.swapaxes(0, 1))
    return both.reshape(36, -1, O)


def _adjoint(g: list[np.ndarray], out: np.ndarray) -> None:
    """The adjoint of :func:`_inverse`."""
    a, b = np.empty(g[0].shape, np.float32), np.empty(g[0].shape, np.float32)
    np.add(g[0], g[2], out=a)
    np.add(g[1], g[3], out=b)
    np.add(a, b, out=out[1])
    np.subtract(a, b, out=out[2])
    np.multiply(g[2], 4, out=a)
    a += g[0]
    np.multiply(g[3], 4, out=b)
    b += g[1]
    b *= 2
    np.add(a, b, out=out[3])
    np.subtract(a, b, out=out[4])
    out[0] = g[0]
    out[5] = g[3]


def convolve(padded: np.ndarray, transformed: np.ndarray, part: TileRows) -> np.ndarray:
    """Results of a part, whole tiles, from images with their padding and transformed kernels."""
    values = tiles(padded, part)
    return results(np.matmul(values, transformed, out=take((36, values.shape[1], transformed.shape[2]))), part)
