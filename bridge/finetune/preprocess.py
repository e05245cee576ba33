"""Caffe's preprocessing: crop, mirror, mean, scale.

Source: caffe.proto ``TransformationParameter``, data_transformer.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.errors import UsageError
from bridge.schema import times


@dataclass(frozen=True)
class Preprocess:
    """``(crop(mirror(x)) - mean) * scale``.

    Attributes:
        scale: Factor after the mean is taken off.
        mean: Per channel (C,), or an image (C, H, W); float32.
        crop: (height, width) cut out: at random in training, from the middle otherwise.
        mirror: Whether training flips images left to right at random.
        swap: Whether channels are turned round first, for arrays that are RGB.
    """

    scale: float = 1.0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    crop: tuple[int, int] | None = None
    mirror: bool = False
    swap: bool = False

    @property
    def random(self) -> bool:
        """Whether training sees an image in more than one form."""
        return self.mirror or self.crop is not None

    def apply(self, x: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Images as the net wants them.

        Args:
            x: (N, C, H, W) uint8 or float32.
            draws: (N, 3) uniform numbers in [0, 1) for row, column and mirror of each
                image; none takes the middle, unmirrored.

        Returns:
            float32 (N, C, crop height, crop width).
        """
        if self.swap:
            x = x[:, ::-1]
        y = x.astype(np.float32)
        image_mean = self.mean.ndim == 3
        if self.mean.size:
            if image_mean and self.mean.shape != y.shape[1:]:
                raise UsageError(f"the mean is {times(self.mean.shape)}, the images are {times(y.shape[1:])}")
            y -= self.mean if image_mean else self.mean.reshape(-1, 1, 1)
        if self.crop is not None:
            y = self._crop(y, draws)
        if draws is not None and self.mirror:
            flipped = draws[:, 2] < 0.5
            y[flipped] = y[flipped, :, :, ::-1]
        if self.scale != 1:
            y *= np.float32(self.scale)
        return np.ascontiguousarray(y)

    def _crop(self, x: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        height, width = self.crop or x.shape[2:]
        rows, columns = x.shape[2] - height, x.shape[3] - width
        if rows < 0 or columns < 0:
            raise UsageError(f"a crop of {height} x {width} does not fit images of {x.shape[2]} x {x.shape[3]}")
        if draws is None:
            return x[:, :, rows // 2 : rows // 2 + height, columns // 2 : columns // 2 + width].copy()
        tops, lefts = (draws[:, :2] * [rows + 1, columns + 1]).astype(int).T
        return np.stack([image[:, t : t + height, s : s + width] for image, t, s in zip(x, tops, lefts, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """As plain data, for preprocess.json."""
        return {
            "scale": self.scale,
            "mean": self.mean.tolist(),
            "crop": list(self.crop) if self.crop else None,
            "mirror": self.mirror,
            "swap_channels": self.swap,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """The opposite of :meth:`to_json`."""
        return cls(
            scale=float(data["scale"]),
            mean=np.asarray(data["mean"], np.float32),
            crop=tuple(data["crop"]) if data["crop"] else None,
            mirror=bool(data["mirror"]),
            swap=bool(data["swap_channels"]),
        )
