"""Images and messages to arrays and back.

Images are read and resized by scikit-image, which is imported when it is needed.

Source: io.py of pycaffe.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bridge.caffe.proto import caffe_pb2
from bridge.errors import MissingExtraError, NotFoundError, UsageError
from bridge.schema import Shape, times

_LEGACY = ("num", "channels", "height", "width")


# -- messages --------------------------------------------------------------------------------------


def blobproto_to_array(blob: Any, return_diff: bool = False) -> np.ndarray:
    """The values of a ``BlobProto``.

    Args:
        blob: The message.
        return_diff: Give the gradient instead.

    Returns:
        float64 of the message's shape.
    """
    values = np.array(blob.diff if return_diff else blob.data)
    if any(blob.HasField(name) for name in _LEGACY):
        return values.reshape([getattr(blob, name) for name in _LEGACY])
    return values.reshape(blob.shape.dim)


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> Any:
    """A ``BlobProto`` with the values of an array, and perhaps a gradient of the same shape."""
    blob = caffe_pb2.BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        blob.diff.extend(diff.astype(float).flat)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """Arrays as the bytes of a ``BlobProtoVector``."""
    vector = caffe_pb2.BlobProtoVector()
    vector.blobs.extend([array_to_blobproto(array) for array in arraylist])
    return bytes(vector.SerializeToString())


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """The arrays in the bytes of a ``BlobProtoVector``."""
    vector = caffe_pb2.BlobProtoVector.FromString(str)
    return [blobproto_to_array(blob) for blob in vector.blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> Any:
    """A ``Datum`` with the values of an array.

    Args:
        arr: (channels, height, width); uint8 becomes bytes, everything else floats.
        label: The class.

    Raises:
        UsageError: The array has another number of axes.
    """
    if arr.ndim != 3:
        raise UsageError(f"Incorrect array shape: {times(arr.shape)}", expected="channels x height x width")
    datum = caffe_pb2.Datum()
    datum.channels, datum.height, datum.width = arr.shape
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> np.ndarray:
    """The values of a ``Datum`` that is not encoded: (channels, height, width), uint8 or float64."""
    shape = (datum.channels, datum.height, datum.width)
    if len(datum.data):
        return np.frombuffer(datum.data, np.uint8).reshape(shape).copy()
    return np.array(datum.float_data).astype(float).reshape(shape)


# -- what a net is fed -----------------------------------------------------------------------------


class Transformer:
    """Brings images into the form that a net's inputs have.

    In this order: resize, transpose, reorder channels, multiply by the raw scale, subtract the mean,
    multiply by the input scale. What is not set is left out, but for resizing.

    Args:
        inputs: The shape of each input blob, (N, C, H, W), by name.

    Attributes:
        transpose, channel_swap, raw_scale, mean, input_scale: What is set, by the input's name.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> Shape:
        if in_ not in self.inputs:
            raise NotFoundError(f"{in_} is not one of the net inputs: {', '.join(self.inputs)}")
        return tuple(self.inputs[in_])

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """An image in the form that the input has.

        Args:
            in_: The input.
            data: (height, width, channels).

        Returns:
            float32 (channels, height, width) where a transpose is set. As in pycaffe the scales and the
            mean are applied to ``data`` itself where that is float32 and of the input's size.
        """
        shape = self._shape(in_)[2:]
        image = data.astype(np.float32, copy=False)
        if image.shape[:2] != shape:
            image = resize_image(image, shape)
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = image[self.channel_swap[in_], :, :]
        if self.raw_scale.get(in_) is not None:
            image *= self.raw_scale[in_]
        if self.mean.get(in_) is not None:
            image -= self.mean[in_]
        if self.input_scale.get(in_) is not None:
            image *= self.input_scale[in_]
        return image

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """What :meth:`preprocess` did, undone, but for the size.

        Args:
            in_: The input.
            data: (channels, height, width), or with axes of extent one more.
        """
        self._shape(in_)
        image = data.copy().squeeze()
        if self.input_scale.get(in_) is not None:
            image /= self.input_scale[in_]
        if self.mean.get(in_) is not None:
            image += self.mean[in_]
        if self.raw_scale.get(in_) is not None:
            image /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_]), :, :]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the axes: (2, 0, 1) brings the channels to the front.

        Raises:
            UsageError: It has another number of axes than an image of the input.
        """
        if len(order) != len(self._shape(in_)) - 1:
            raise UsageError(
                f"transpose {tuple(order)}: Transpose order needs to have the same number of dimensions as the input"
            )
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the channels, the first axis after the transpose: (2, 1, 0) makes BGR of RGB.

        Raises:
            UsageError: It has another number of channels than the input.
        """
        if len(order) != self._shape(in_)[1]:
            raise UsageError(
                f"channel swap {tuple(order)}: Channel swap needs to have the same number of dimensions as the input"
            )
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor on the image itself: 255 for a net that was trained on values up to 255."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """Set the mean.

        Args:
            in_: The input.
            mean: (channels), (height, width) or (channels, height, width); another size is resized.

        Raises:
            UsageError: The mean has other channels than the input, or another number of axes.
        """
        shape = self._shape(in_)[1:]
        if mean.ndim == 1:
            if mean.shape[0] != shape[0]:
                raise UsageError(f"Mean channels incompatible with input: {mean.shape[0]}", expected=f"{shape[0]}")
            self.mean[in_] = mean[:, np.newaxis, np.newaxis]
            return
        full = mean.shape if mean.ndim != 2 else (1, *mean.shape)
        if len(full) != 3:
            raise UsageError(f"Mean shape invalid: {times(mean.shape)}")
        if full != shape:
            low, high = mean.min(), mean.max()
            image = ((mean - low) / (high - low)).transpose((1, 2, 0))
            mean = resize_image(image, shape[1:]).transpose((2, 0, 1)) * (high - low) + low
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor on the image after the mean was subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale


# -- images ----------------------------------------------------------------------------------------


def load_image(filename: Any, color: bool = True) -> np.ndarray:
    """An image from a file.

    Args:
        filename: The file, in any format that scikit-image reads.
        color: Give three channels, of a grey image the same three times; else one, of grey.

    Returns:
        float32 (height, width, 3) as RGB or (height, width, 1), from 0 to 1.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    reader, convert = _skimage("skimage.io"), _skimage("skimage")
    try:
        image = reader.imread(filename, as_gray=not color)
    except TypeError:  # its name before scikit-image 0.14
        image = reader.imread(filename, as_grey=not color)
    image = convert.img_as_float(image).astype(np.float32)
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
        return np.tile(image, (1, 1, 3)) if color else image
    return np.asarray(image[:, :, :3] if image.shape[2] == 4 else image)


def resize_image(im: np.ndarray, new_dims: Sequence[int], interp_order: int = 1) -> np.ndarray:
    """An image in another size.

    Args:
        im: (height, width, channels).
        new_dims: The new height and width.
        interp_order: Order of the interpolation: 0 takes the nearest value, 1 is linear.

    Returns:
        float32 (new height, new width, channels).

    Raises:
        MissingExtraError: scikit-image, or SciPy for other than 1 or 3 channels, is not installed.
    """
    if im.shape[-1] not in (1, 3):
        scale = tuple(np.array(new_dims, dtype=float) / np.array(im.shape[:2]))
        zoomed: np.ndarray = _package("scipy.ndimage", "scipy").zoom(im, (*scale, 1), order=interp_order)
        return zoomed.astype(np.float32)
    low, high = im.min(), im.max()
    if high <= low:  # nothing to divide by
        return np.full((new_dims[0], new_dims[1], im.shape[-1]), low, np.float32)
    unit = (im - low) / (high - low)
    resized = _skimage("skimage.transform").resize(unit, new_dims, order=interp_order, mode="constant")
    return np.asarray(resized * (high - low) + low).astype(np.float32)


def oversample(images: Sequence[np.ndarray], crop_dims: Sequence[int]) -> np.ndarray:
    """Ten crops of each image: the four corners, the centre, and these five mirrored.

    Args:
        images: Each (height, width, channels), all of one size.
        crop_dims: Height and width of a crop.

    Returns:
        float32 (10 x images, height, width, channels).
    """
    size, crop = np.array(images[0].shape[:2]), np.array(crop_dims)
    corners = [(top, left) for top in (0, size[0] - crop[0]) for left in (0, size[1] - crop[1])]
    corners.append(tuple((size / 2.0 - crop / 2.0).astype(int)))
    crops = np.empty((10 * len(images), *crop, images[0].shape[-1]), np.float32)
    for number, image in enumerate(images):
        for place, (top, left) in enumerate(corners):
            crops[10 * number + place] = image[top : top + crop[0], left : left + crop[1], :]
        crops[10 * number + 5 : 10 * number + 10] = crops[10 * number : 10 * number + 5, :, ::-1, :]
    return crops


def _skimage(name: str) -> Any:
    return _package(name, "scikit-image")


def _package(name: str, distribution: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # another package, which this one needs
            raise
        raise MissingExtraError(f"{distribution} is not installed", hint=f"pip install {distribution}") from None
