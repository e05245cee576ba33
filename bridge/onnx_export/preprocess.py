"""Preprocessing as the first nodes of an exported model: channel order, mean, scale."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.errors import FormatError, UsageError
from bridge.schema import times

KEY = "bridge.preprocess"
"""Name of the text in a model's metadata that tells its preprocessing."""
_DAMAGED = "the file is damaged, or was changed by another tool"


@dataclass(frozen=True)
class Preprocess:
    """``(x - mean) * scale``, after the channels are reversed if ``bgr`` is set.

    Attributes:
        mean: Empty, one value, one per channel (C,), or an image (C, H, W); float32, in Caffe's order. Of an
            image larger than the input the centre is taken, as where Caffe crops its images.
        scale: Factor.
        bgr: The model takes RGB and reverses the channels to Caffe's BGR.

    Raises:
        UsageError: A value makes no sense.

    Source: data_transformer.cpp.
    """

    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    scale: float = 1.0
    bgr: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale and np.isfinite(self.mean).all()):
            raise UsageError(f"scale {self.scale:g} and the mean must be finite numbers, and the scale not 0")
        if self.mean.ndim not in (1, 3):
            raise UsageError(f"the mean is {times(self.mean.shape)}", expected="one value, channels, or an image")

    def __bool__(self) -> bool:
        return bool(self.mean.size) or self.scale != 1 or self.bgr

    def metadata(self, image: str) -> dict[str, str]:
        """What the model does to an input, as text for its metadata: ``{"input": "data", "scale": 0.5, ...}``.

        The mean's float32 values stand there in base64, little-endian.
        """
        values = np.ascontiguousarray(self.mean, "<f4")
        told = {
            "input": image,
            "mean": base64.b64encode(values.tobytes()).decode(),
            "mean_shape": list(values.shape),
            "scale": self.scale,
            "bgr": self.bgr,
        }
        return {KEY: json.dumps(told, separators=(",", ":"))}

    @classmethod
    def from_metadata(cls, texts: Mapping[str, str], where: str) -> tuple[Preprocess, str]:
        """What :meth:`metadata` wrote, and the input; nothing and no input where there is no such text.

        Raises:
            FormatError: The text is damaged.
        """
        if KEY not in texts:
            return cls(), ""
        try:
            told = json.loads(texts[KEY])
            values = np.frombuffer(base64.b64decode(told["mean"], validate=True), "<f4")
            mean = values.reshape(told["mean_shape"]).astype(np.float32)
            return cls(mean, float(told["scale"]), bool(told["bgr"])), str(told["input"])
        except (ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
            raise FormatError(f"is damaged: {error}", where=f"{where}: {KEY}", hint=_DAMAGED) from None

    def __str__(self) -> str:
        mean = (
            f"mean {times(self.mean.shape)}" if self.mean.size > 4 else f"mean {', '.join(f'{v:g}' for v in self.mean)}"
        )
        steps = ["channels reversed" if self.bgr else "", mean if self.mean.size else ""]
        return ", ".join([step for step in steps if step] + ([f"scale {self.scale:g}"] if self.scale != 1 else []))

    def image_of(self, inputs: Mapping[str, Sequence[Any]], where: str = "") -> str:
        """Which input is preprocessed: the first of four axes.

        Raises:
            UsageError: There is none, or it has not the channels to turn round.
        """
        images = [name for name, shape in inputs.items() if len(shape) == 4]
        if not images:
            raise UsageError("no input of four axes to preprocess", where=where)
        channels = inputs[images[0]][1]
        if self.bgr and isinstance(channels, int) and channels != 3:
            raise UsageError(
                f"input '{images[0]}' has {channels} channels", expected="3 to reverse RGB to BGR", where=where
            )
        return images[0]

    def _fitted(self, shape: Sequence[int]) -> np.ndarray:
        """The mean in a shape that goes with an input (N, C, H, W); H and W are read for an image only."""
        mean = self.mean.reshape(-1, 1, 1) if self.mean.ndim == 1 else self.mean
        axes = slice(1, 2 if mean.shape[1:] == (1, 1) else 4)
        wanted = tuple(shape[axes])
        offsets = [(own - extent) // 2 for own, extent in zip(mean.shape[1:], wanted[1:], strict=False)]
        if offsets and min(offsets) >= 0:
            rows, columns = (slice(a, a + n) for a, n in zip(offsets, wanted[1:], strict=True))
            mean = mean[:, rows, columns]
        if mean.shape[0] not in (1, wanted[0]) or (offsets and mean.shape[1:] != wanted[1:]):
            what = "channels" if len(wanted) == 1 else "as channels, height and width"
            raise UsageError(f"a mean of {times(self.mean.shape)} does not fit an input of {times(wanted)} {what}")
        return np.ascontiguousarray(mean, np.float32)

    def emit(self, g: Any, x: str) -> str:
        """Add the nodes; returns the name of the net's input value."""
        shape = g.shape(x)
        if self.bgr:
            x = g.Slice(x, g.ints([-1]), g.ints([-(2**31)]), g.ints([1]), g.ints([-1]))
        if self.mean.size:
            x = g.Sub(x, g.const(self._fitted(shape), "mean"))
        return str(g.Mul(x, g.const(np.float32(self.scale)))) if self.scale != 1 else x

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The same on an array (N, C, H, W) float32."""
        y = x[:, ::-1] if self.bgr else x
        y = y - self._fitted(x.shape) if self.mean.size else y
        return np.ascontiguousarray(y * np.float32(self.scale), np.float32)

    def undo(self, x: np.ndarray) -> np.ndarray:
        """The array that :meth:`apply` turns into this one, up to rounding."""
        y = x / np.float32(self.scale)
        y = y + self._fitted(x.shape) if self.mean.size else y
        return np.ascontiguousarray(y[:, ::-1] if self.bgr else y, np.float32)
