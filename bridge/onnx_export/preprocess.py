"""Preprocessing as the first nodes of an exported model: what programs do to an image before they feed it."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.errors import FormatError, UsageError
from bridge.schema import Shape, times

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_ROUNDING = 2.0**-24
"""The relative error of one rounding in float32."""

KEY = "bridge.preprocess"
"""Name of the text in a model's metadata that tells its preprocessing."""
_DAMAGED = "the file is damaged, or was changed by another tool"


@dataclass(frozen=True)
class Preprocess:
    """What a model does to an image first.

    It becomes float32 N x C x H x W; its channels are swapped; it is resized and cropped; then ``(x - mean) * scale``.

    Attributes:
        mean: Empty, one value, one per channel (C,), or an image (C, H, W); float32, in the net's order. Of an
            image larger than the input the centre is taken, as where Caffe crops its images.
        scale: Factor.
        swap_channels: Reverse the channels: the model takes RGB where the net takes BGR, or the other way round.
        input_layout: ``nchw``, or ``nhwc`` for a model that takes images as OpenCV and NumPy hold them, N x H x W x C.
        uint8: The model takes 8-bit values, 0 to 255.
        resize: (height, width) to which the image is resized, with bilinear interpolation as OpenCV's INTER_LINEAR
            has it: pixels have their centres at half numbers, and nothing is averaged when the image shrinks. The
            model then takes images of any size.
        smooth: The resizing averages when the image shrinks, as Pillow's BILINEAR does.
        crop: (height, width) cut out of the middle of the resized image; the size of the net's input.

    Raises:
        UsageError: A value makes no sense.

    Source: data_transformer.cpp; ONNX ``Resize`` (``half_pixel``); OpenCV's ``resize`` (INTER_LINEAR); Pillow's
    Resample.c (``bilinear_filter``).
    """

    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    scale: float = 1.0
    swap_channels: bool = False
    input_layout: str = "nchw"
    uint8: bool = False
    resize: tuple[int, int] | None = None
    smooth: bool = False
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale and np.isfinite(self.mean).all()):
            raise UsageError(f"scale {self.scale:g} and the mean must be finite numbers, and the scale not 0")
        if self.mean.ndim not in (1, 3):
            raise UsageError(f"the mean is {times(self.mean.shape)}", expected="one value, channels, or an image")
        if self.input_layout not in ("nchw", "nhwc"):
            raise UsageError(f"input layout '{self.input_layout}'", expected="nchw or nhwc")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise UsageError(f"resize to {times(self.resize)}", expected="a height and a width, each 1 or more")
        if self.crop is not None and (self.resize is None or min(self._margins()) < 0 or min(self.crop) < 1):
            found = times(self.resize) if self.resize is not None else "no resize"
            raise UsageError(f"a crop of {times(self.crop)} and {found}", expected="a resize to at least the crop")

    def __bool__(self) -> bool:
        moved = self.swap_channels or self.input_layout != "nchw" or self.uint8 or self.resize is not None
        return bool(self.mean.size) or self.scale != 1 or moved

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
            "swap_channels": self.swap_channels,
            "input_layout": self.input_layout,
            "uint8": self.uint8,
            "resize": self.resize,
            "smooth": self.smooth,
            "crop": self.crop,
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
            made = cls(
                mean,
                float(told["scale"]),
                bool(told["swap_channels"]),
                str(told["input_layout"]),
                bool(told["uint8"]),
                _pair(told["resize"]),
                bool(told.get("smooth", False)),  # files of version 1.0 and before have neither
                _pair(told.get("crop")),
            )
            return made, str(told["input"])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError, UsageError) as error:
            raise FormatError(f"is damaged: {error}", where=f"{where}: {KEY}", hint=_DAMAGED) from None

    def __str__(self) -> str:
        mean = (
            f"mean {times(self.mean.shape)}" if self.mean.size > 4 else f"mean {', '.join(f'{v:g}' for v in self.mean)}"
        )
        steps = [
            "8-bit pixels" if self.uint8 else "",
            self.input_layout if self.input_layout != "nchw" else "",
            "channels swapped" if self.swap_channels else "",
            f"resized to {times(self.resize)}" if self.resize is not None else "",
            f"cropped to {times(self.crop)}" if self.crop is not None else "",
            mean if self.mean.size else "",
            f"scale {self.scale:g}" if self.scale != 1 else "",
        ]
        return ", ".join(filter(None, steps))

    # -- which input, and its extents ----------------------------------------------------------------

    def image_of(self, inputs: Mapping[str, Sequence[Any]], where: str = "") -> str:
        """Which input is preprocessed: the first of four axes.

        Raises:
            UsageError: There is none, or it does not have the channels to swap.
        """
        images = [name for name, shape in inputs.items() if len(shape) == 4]
        if not images:
            raise UsageError("no input of four axes to preprocess", where=where)
        channels = inputs[images[0]][1]
        if self.swap_channels and isinstance(channels, int) and channels != 3:
            raise UsageError(
                f"input '{images[0]}' has {channels} channels", expected="3 to swap between RGB and BGR", where=where
            )
        return images[0]

    def resized(
        self, inputs: Mapping[str, Sequence[int | str]], given: Collection[str] = (), where: str = ""
    ) -> dict[str, list[int | str]]:
        """The extents of the net's inputs, with those of :attr:`resize` for the image.

        Args:
            inputs: Extents of each input blob.
            given: The inputs whose extents the user gave.
            where: The net, for messages.

        Raises:
            UsageError: The user gave the image another height or width.
        """
        shapes = {name: list(shape) for name, shape in inputs.items()}
        if self.resize is not None:
            name = self.image_of(inputs, where)
            wanted = list(self.crop or self.resize)
            if name in given and shapes[name][2:] != wanted:
                found = " x ".join(map(str, shapes[name][2:]))
                raise UsageError(
                    f"input '{name}' is given {found} as height and width, and resize is {times(self.resize)}",
                    where=where,
                    hint="with --resize the model takes images of any height and width",
                )
            shapes[name][2:] = wanted
        return shapes

    def model_extents(self, net: Sequence[int | str], height: str, width: str) -> list[int | str]:
        """The extents of the image that the model takes.

        Args:
            net: Those of the net's input, (N, C, H, W).
            height: The name of an open height.
            width: The name of an open width.
        """
        extents = [*net[:2], height, width] if self.resize is not None else list(net)
        return [extents[axis] for axis in _TO_NHWC] if self.input_layout == "nhwc" else extents

    def net_shape(self, image: Sequence[int]) -> Shape:
        """The shape of the net's input for an image that the model takes."""
        shape = tuple(image[axis] for axis in _TO_NCHW) if self.input_layout == "nhwc" else tuple(image)
        return (*shape[:2], *(self.crop or self.resize)) if self.resize is not None else shape

    def _margins(self) -> tuple[int, int]:
        """The rows above and the columns left of the crop; less than 0 where it does not fit."""
        whole = self.resize or (0, 0)
        height, width = self.crop or whole
        return (whole[0] - height) // 2, (whole[1] - width) // 2

    # -- the nodes ---------------------------------------------------------------------------------

    def emit(self, g: Any, x: str, shape: Sequence[int]) -> str:
        """Add the nodes; returns the name of the net's input value.

        Args:
            g: The builder.
            x: The model's input.
            shape: That of the net's input; reading an open extent fixes it.
        """
        if self.uint8:
            x = g.Cast(x, to=g.FLOAT)
        if self.input_layout == "nhwc":
            x = g.Transpose(x, perm=list(_TO_NCHW))
        if self.swap_channels:
            x = g.Slice(x, g.ints([-1]), g.ints([-(2**31)]), g.ints([1]), g.ints([-1]))
        if self.resize is not None:
            x = self._emit_smooth(g, x) if self.smooth else self._emit_resize(g, x, shape)
        if self.crop is not None:
            ends = [margin + extent for margin, extent in zip(self._margins(), self.crop, strict=True)]
            x = g.Slice(x, g.ints(self._margins()), g.ints(ends), g.ints([2, 3]))
        if self.mean.size:
            x = g.Sub(x, g.const(self._fitted(shape), "mean"))
        return str(g.Mul(x, g.const(np.float32(self.scale)))) if self.scale != 1 else x

    def _emit_resize(self, g: Any, x: str, shape: Any) -> str:
        how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        target = self.resize or ()
        if g.opset >= 18:
            return str(g.Resize(x, "", "", g.ints(target), axes=[2, 3], **how))
        if shape.fixed(0) and shape.fixed(1):
            return str(g.Resize(x, "", "", g.ints([*shape[:2], *target]), **how))
        kept = g.Slice(g.Shape(x), g.ints([0]), g.ints([2]))
        return str(g.Resize(x, "", "", g.Concat(kept, g.ints(target), axis=0), **how))

    def _emit_smooth(self, g: Any, x: str) -> str:
        """Two matrix products: runtimes differ about the ``antialias`` of ONNX's Resize."""
        height, width = self.resize or (0, 0)
        x = g.MatMul(_emit_weights(g, x, 2, height), x)
        return str(g.MatMul(x, g.Transpose(_emit_weights(g, x, 3, width), perm=[1, 0])))

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

    # -- the same in NumPy ---------------------------------------------------------------------------

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The net's input, (N, C, H, W) float32, for an image that the model takes."""
        x = np.asarray(image, np.float32)
        x = x.transpose(_TO_NCHW) if self.input_layout == "nhwc" else x
        x = x[:, ::-1] if self.swap_channels else x
        for axis, extent in zip((3, 2), (self.resize or ())[::-1], strict=False):
            x = _averaged(x, axis, extent) if self.smooth else _interpolated(x, axis, extent)
        if self.crop is not None:
            (top, left), (height, width) = self._margins(), self.crop
            x = x[:, :, top : top + height, left : left + width]
        x = x - self._fitted(x.shape) if self.mean.size else x
        return np.ascontiguousarray(x * np.float32(self.scale), np.float32)

    def gives(self, image: np.ndarray, x: np.ndarray) -> bool:
        """Whether :meth:`apply` turns the image into that net's input, up to rounding."""
        return np.allclose(self.apply(image), x, 1e-5, self.bound(image))

    def undo(self, x: np.ndarray) -> np.ndarray:
        """An image that :meth:`apply` turns into this net's input, up to rounding: to integers with ``uint8``."""
        y = x / np.float32(self.scale)
        y = y + self._fitted(x.shape) if self.mean.size else y
        y = y[:, ::-1] if self.swap_channels else y
        if self.crop is not None and self.resize is not None:  # what is cut off has no influence
            ends = [(m, whole - m - n) for m, whole, n in zip(self._margins(), self.resize, self.crop, strict=True)]
            y = np.pad(y, [(0, 0), (0, 0), *ends], mode="edge")
        y = y.transpose(_TO_NHWC) if self.input_layout == "nhwc" else y
        if self.uint8:
            return np.ascontiguousarray(np.clip(np.rint(y), 0, 255), np.uint8)
        return np.ascontiguousarray(y, np.float32)

    def example(self, x: np.ndarray, shape: Shape, seed: int) -> np.ndarray:
        """An image to try the model with: the net's random input ``x`` where that will do, or random pixels.

        Args:
            x: The net's input.
            shape: That of the image.
            seed: For the pixels.
        """
        if self.uint8 or self.resize is not None:
            pixels = np.random.default_rng([seed, len(shape)]).integers(0, 256, shape, np.uint8)
            return pixels if self.uint8 else pixels.astype(np.float32)
        return np.ascontiguousarray(x.transpose(_TO_NHWC)) if self.input_layout == "nhwc" else x

    def bound(self, image: np.ndarray) -> float:
        """How far rounding can move a value of :meth:`apply`: places between pixels are computed in float32, too."""
        largest = float(np.abs(np.asarray(image, np.float32)).max(initial=1)) + float(np.abs(self.mean).max(initial=0))
        return 8 * _ROUNDING * abs(self.scale) * largest * (max(image.shape) if self.resize is not None else 1)


def _interpolated(x: np.ndarray, axis: int, extent: int) -> np.ndarray:
    """One axis with another extent. Source: OpenCV's ``resize`` (INTER_LINEAR)."""
    last = x.shape[axis] - 1
    places = np.clip((np.arange(extent) + 0.5) * (x.shape[axis] / extent) - 0.5, 0, last)
    low = np.floor(places).astype(np.int64)
    share = (places - low).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(x.ndim)])
    below, above = x.take(low, axis), x.take(np.minimum(low + 1, last), axis)
    return np.asarray(below * (1 - share) + above * share, np.float32)


def _averaged(x: np.ndarray, axis: int, extent: int) -> np.ndarray:
    """One axis with another extent, averaged where it shrinks. Source: Pillow's Resample.c (``bilinear_filter``)."""
    ratio = np.float32(x.shape[axis] / extent)
    centres = (np.arange(extent, dtype=np.float32) + np.float32(0.5))[:, None] * ratio
    places = np.arange(x.shape[axis], dtype=np.float32) + np.float32(0.5)
    weights = np.maximum(0, 1 - np.abs(places - centres) / max(ratio, np.float32(1)))
    weights /= weights.sum(1, keepdims=True)
    return np.asarray(np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis), np.float32)


def _emit_weights(g: Any, x: str, axis: int, extent: int) -> str:
    """The matrix of :func:`_averaged`, (extent, the axis's extent)."""
    count = g.Cast(g.Slice(g.Shape(x), g.ints([axis]), g.ints([axis + 1])), to=g.FLOAT)
    ratio = g.Div(count, g.const(np.float32(extent)))
    centres = g.Mul(g.const((np.arange(extent, dtype=np.float32) + np.float32(0.5))[:, None]), ratio)
    half, none, one = (g.const(np.float32(value)) for value in (0.5, 0, 1))
    places = g.Add(g.Range(none, g.Squeeze(count), one), half)
    far = g.Div(g.Abs(g.Sub(places, centres)), g.Max(ratio, one))
    weights = g.Relu(g.Sub(one, far))
    return str(g.Div(weights, g.ReduceSum(weights, g.ints([1]), keepdims=1)))


def _pair(told: Any) -> tuple[int, int] | None:
    return None if told is None else (int(told[0]), int(told[1]))
