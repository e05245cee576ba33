"""Layers in Python, as the tests' nets name them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge import caffe


class Times(caffe.Layer):
    """Multiplies by its parameter's text."""

    def setup(self, bottom: Any, top: Any) -> None:
        if len(bottom) != 1:
            raise ValueError("one bottom, please")
        self.factor = float(self.param_str)
        self.passes = 0

    def reshape(self, bottom: Any, top: Any) -> None:
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom: Any, top: Any) -> None:
        self.passes += 1
        top[0].data[...] = self.factor * bottom[0].data

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * top[0].diff


class Squares(caffe.Layer):
    """Half of the sum of squares, as a loss."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.blobs.add_blob(2)

    def reshape(self, bottom: Any, top: Any) -> None:
        top[0].reshape(1)

    def forward(self, bottom: Any, top: Any) -> None:
        top[0].data[...] = np.square(bottom[0].data).sum() / 2

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        bottom[0].diff[...] = bottom[0].data * top[0].diff
        self.blobs[0].diff[...] += 1


class Numbers(caffe.Layer):
    """A data layer whose batches grow."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.size = 1

    def reshape(self, bottom: Any, top: Any) -> None:
        top[0].reshape(self.size, 4)

    def forward(self, bottom: Any, top: Any) -> None:
        top[0].data[...] = np.arange(self.size * 4).reshape(-1, 4) + 10 * self.phase
        self.size += 1

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        pass
