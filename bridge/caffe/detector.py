"""Detector: a net that classifies windows of images. Source: detector.py of pycaffe."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bridge.caffe import io
from bridge.caffe.classifier import ImageNet
from bridge.errors import MissingExtraError, UsageError

Windows = Iterable[tuple[Any, Iterable[np.ndarray]]]


class Detector(ImageNet):
    """A net that classifies windows of images, each resized to the net's input.

    Args:
        model_file: The prototxt.
        pretrained_file: The weights.
        mean, input_scale, raw_scale, channel_swap: See :class:`bridge.caffe.classifier.ImageNet`.
        context_pad: Pixels of the image around the window on each side of the input.
    """

    def __init__(
        self,
        model_file: Any,
        pretrained_file: Any,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Windows) -> list[dict[str, Any]]:
        """Classify windows.

        Args:
            images_windows: Pairs of an image's file and its windows, each (ymin, xmin, ymax, xmax).

        Returns:
            For each window a dict of ``filename``, ``window`` and ``prediction``.
        """
        places, crops = [], []
        for filename, windows in images_windows:
            image = io.load_image(filename).astype(np.float32)
            for window in windows:
                places.append((filename, window))
                crops.append(self.crop(image, window))
        predictions = self.outputs_for(crops)
        return [
            {"window": window, "prediction": prediction, "filename": filename}
            for (filename, window), prediction in zip(places, predictions, strict=True)
        ]

    def detect_selective_search(self, image_fnames: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify the windows that selective search proposes.

        Raises:
            MissingExtraError: selective_search_ijcv_with_python, which needs MATLAB, is not on the path.
        """
        try:
            search = importlib.import_module("selective_search_ijcv_with_python")
        except ModuleNotFoundError:
            hint = "give the windows to detect_windows, or put it on PYTHONPATH"
            raise MissingExtraError("selective_search_ijcv_with_python is not installed", hint=hint) from None
        files = [os.path.abspath(name) for name in image_fnames]
        return self.detect_windows(zip(files, search.get_windows(files, cmd="selective_search_rcnn"), strict=False))

    def crop(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """A window of an image, with the context around it.

        Args:
            im: (height, width, channels).
            window: ymin, xmin, ymax, xmax.

        Raises:
            UsageError: The window has no pixel in the image.
        """
        if not self.context_pad:
            return np.asarray(im[window[0] : window[2], window[1] : window[3]])
        size = int(self.crop_dims[1])  # the input is a square
        scale = size / (size - self.context_pad * 2.0)
        low, high = np.array(window[:2], float), np.array(window[2:], float)
        half = (high - low + 1) / 2
        low, high = np.round(low + half - scale * half), np.round(low + half + scale * half)
        factor = size / (high - low + 1)
        before = np.round(np.maximum(0, -low) * factor).astype(int)
        limits = np.array(im.shape[:2])
        low, high = (np.clip(corner, 0, limits).astype(int) for corner in (low, high))
        if (high - low + 1 <= 0).any() or (low >= limits).any():
            raise UsageError(f"window {[*window]} lies outside the image of {im.shape[0]} x {im.shape[1]}")
        extent = np.minimum(np.round((high - low + 1) * factor).astype(int), size - before)
        made = np.ones(tuple(self.crop_dims), np.float32) * self.crop_mean
        inside = io.resize_image(im[low[0] : high[0], low[1] : high[1]], tuple(extent))
        made[before[0] : before[0] + extent[0], before[1] : before[1] + extent[1]] = inside
        return np.asarray(made)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context around windows.

        Args:
            context_pad: Pixels on each side of the input; outside the image they are the mean.
        """
        name = self.inputs[0]
        back = np.argsort(self.transformer.transpose[name])
        self.crop_dims = np.array(self.blobs[name].dims[1:])[back]
        self.context_pad = context_pad
        mean = self.transformer.mean.get(name)
        self.crop_mean = np.zeros(tuple(self.crop_dims), np.float32)
        if not context_pad or mean is None:
            return
        image = mean.transpose(back)
        if name in self.transformer.channel_swap:
            image = image[:, :, np.argsort(self.transformer.channel_swap[name])]
        self.crop_mean = image / self.transformer.raw_scale.get(name, 1.0)
