"""Caffe's preprocessing: crop, mirror, mean, scale.

Source: caffe.proto ``TransformationParameter``, data_transformer.cpp.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import UsageError
from bridge.layers.data_source import DataSource, Transform
from bridge.schema import Net, Shape, times

if TYPE_CHECKING:
    from bridge.finetuning.config import Config
    from bridge.finetuning.data import Data


@dataclass(frozen=True)
class ImageTransform:
    """``(crop(mirror(x)) - mean) * scale``.

    Attributes:
        scale: Factor after the mean is taken off.
        mean: Per channel (C,), or an image (C, H, W); float32.
        crop: (height, width) cut out: at random in training, from the middle otherwise.
        mirror: Whether training flips images left to right at random.
        swap: Whether the order of the channels is reversed first, for arrays that are RGB.
    """

    scale: float = 1.0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    crop: tuple[int, int] | None = None
    mirror: bool = False
    swap: bool = False

    @property
    def random(self) -> bool:
        """Whether training augments images."""
        return self.mirror or self.crop is not None

    def apply(self, x: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Preprocess images for the net.

        Args:
            x: (N, C, H, W) uint8 or float32.
            draws: (N, 3) random numbers in [0, 1) for row, column and mirror of each image; ``None``
                crops the middle and does not mirror.

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
    def from_json(cls, data: dict[str, Any], folder: Path) -> ImageTransform:
        """The inverse of :meth:`to_json`; a mean image is read from the folder."""
        mean = np.load(folder / "mean.npy", allow_pickle=False) if data["mean"] == "mean.npy" else data["mean"]
        return cls(
            scale=float(data["scale"]),
            mean=np.asarray(mean, np.float32),
            crop=tuple(data["crop"]) if data["crop"] else None,
            mirror=bool(data["mirror"]),
            swap=bool(data["swap_channels"]),
        )


def preprocessing(
    config: Config, net: Net, shape: Shape, source: DataSource | None
) -> tuple[ImageTransform, tuple[int, int]]:
    """How images become inputs: by the settings, and for those left out by the prototxt's data layer.

    Args:
        config: The settings.
        net: The net.
        shape: (N, C, H, W) of its input.
        source: Its data layer, if it had one.

    Returns:
        The preprocessing, and the (height, width) that pictures are resized to before.

    Raises:
        UsageError: The mean does not fit, or the prototxt's mean file is not in its folder or below.
    """
    transform = source.transform if source is not None else Transform()
    _, channels, height, width = shape
    mean = _mean(config.mean, channels) if config.mean else _own_mean(net, transform)
    resize = config.resize or _own_size(source, mean) or (height, width)
    crops = config.resize or transform.crop_size or resize != (height, width)
    crop = config.crop or ((height, width) if crops else None)
    preprocess = ImageTransform(
        scale=config.scale if config.scale is not None else transform.scale,
        mean=mean,
        crop=crop,
        mirror=config.mirror if config.mirror is not None else transform.mirror,
        swap=config.swap,
    )
    return preprocess, resize


def _own_size(source: DataSource | None, mean: np.ndarray) -> tuple[int, int] | None:
    """The size of whole images by the data layer or its mean image; ``None`` where neither gives it."""
    if source is not None and source.picture_size is not None:
        return source.picture_size
    return mean.shape[-2:] if mean.ndim == 3 else None


def _own_mean(net: Net, transform: Transform) -> np.ndarray:
    """The mean of the prototxt's data layer; its file must be in the prototxt's folder or below."""
    if not transform.mean_file:
        return np.asarray(transform.mean_value, np.float32)
    folder = Path(net.sources[0]).resolve().parent
    places = [(start / transform.mean_file).resolve() for start in (folder, Path.cwd())]
    found = [path for path in places if path.is_relative_to(folder) and path.is_file()]
    if not found:
        raise UsageError(
            f"there is no mean_file '{transform.mean_file}' in {folder} or below",
            where=net.sources[0],
            hint="give it with --mean FILE",
        )
    return _mean(str(found[0]), 0)


def _mean(text: str, channels: int) -> np.ndarray:
    """``104,117,123``, one number, or a .binaryproto."""
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        from bridge.files.readers import read_mean

        image = np.asarray(read_mean(text).numpy(), np.float32)
        return image.reshape(image.shape[-3:])
    if len(values) not in (1, channels):
        raise UsageError(f"--mean has {len(values)} values, the net's input has {_channels(channels)}")
    return values


def _channels(number: int) -> str:
    return "1 channel" if number == 1 else f"{number} channels"


def fitted(preprocess: ImageTransform, data: Data, shape: Shape, where: str) -> ImageTransform:
    """The preprocessing for these images; a crop of their full size is left out.

    Raises:
        UsageError: Preprocessed images do not have the shape of the net's input.
    """
    made = (data.x.shape[-3], *(preprocess.crop or data.x.shape[-2:]))
    if made != tuple(shape[1:]):
        raise UsageError(
            f"preprocessed images are {times(made)}, the net's input is {times(shape[1:])}",
            where=where,
            hint=f"--crop {shape[2]},{shape[3]} cuts that size out of larger ones",
        )
    if preprocess.mean.ndim == 1 and preprocess.mean.size not in (0, 1, shape[1]):
        raise UsageError(f"the mean has {preprocess.mean.size} values, images have {_channels(shape[1])}", where=where)
    whole = preprocess.crop == data.x.shape[-2:]
    return dataclasses.replace(preprocess, crop=None) if whole else preprocess
