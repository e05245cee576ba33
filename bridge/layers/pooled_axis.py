"""How the windows of a pooling lie along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOWEST = -3.4028234663852886e38
"""The maximum of an empty window: ``-FLT_MAX``."""


@dataclass(frozen=True)
class PooledAxis:
    """The windows along one axis. Source: pooling_layer.cpp.

    Attributes:
        extent: Of the input.
        kernel, stride, pad: Of the pooling.
        ceil: Whether the number of windows is rounded up.
        clip: Whether a last window that starts behind the input is dropped.
    """

    extent: int
    kernel: int
    stride: int
    pad: int
    ceil: bool = True
    clip: bool = False

    @property
    def count(self) -> int:
        """How many windows there are; less than 1 where not even one fits."""
        steps = self.extent + 2 * self.pad - self.kernel
        rounded = (-(-steps // self.stride) if self.ceil else steps // self.stride) + 1
        return rounded - (self.clip and (rounded - 1) * self.stride >= self.extent + self.pad)

    @property
    def inside(self) -> int:
        """How many of them start before the end of the input."""
        return min(self.count, -(-(self.extent + self.pad) // self.stride))

    @property
    def empty(self) -> int:
        """How many do not: without padding, a stride larger than the kernel can lead to them."""
        return self.count - self.inside

    @property
    def trailing(self) -> int:
        """Padding behind the input with which rounding down gives the windows that start inside."""
        return max(0, (self.inside - 1) * self.stride + self.kernel - self.extent - self.pad)

    @property
    def lengths(self) -> np.ndarray:
        """How much of each window lies within the input padded on both sides; not positive for empty ones."""
        starts = np.arange(self.count) * self.stride
        return np.minimum(starts + self.kernel, self.extent + 2 * self.pad) - starts


def trailing_pad(kernel: int, stride: int, pad: int, ceil: bool) -> int:
    """:attr:`PooledAxis.trailing`, or more to the same effect, for any extent and a stride up to the kernel's.

    Rounding up is padding by ``stride - 1`` more, and dropping windows that start in the
    trailing padding is padding by less than a kernel.
    """
    return min(pad + (stride - 1 if ceil else 0), kernel - 1)


def divisor_correction(rows: PooledAxis, columns: PooledAxis) -> np.ndarray:
    """Kernel area over the area that AVE divides by, (rows, columns) float32; NaN over none."""
    area = np.outer(rows.lengths, columns.lengths)
    return np.asarray(rows.kernel * columns.kernel / np.where(area == 0, np.nan, area), np.float32)
