"""Classifier: a net that takes images and gives classes. Source: classifier.py of pycaffe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.caffe import TEST, io
from bridge.caffe.net import Net


class ImageNet(Net):
    """A net in the phase TEST whose first input takes images.

    Args:
        model_file: The prototxt.
        pretrained_file: The weights.
        mean: The mean to subtract; see :meth:`bridge.caffe.io.Transformer.set_mean`.
        input_scale: Factor on the image after that.
        raw_scale: Factor on the image before that.
        channel_swap: Order of the channels.

    Attributes:
        transformer: Brings images into the form that the input has.
    """

    def __init__(
        self,
        model_file: Any,
        pretrained_file: Any,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        name = self.inputs[0]
        self.transformer = io.Transformer({name: self.blobs[name].dims})
        self.transformer.set_transpose(name, (2, 0, 1))
        if mean is not None:
            self.transformer.set_mean(name, mean)
        if input_scale is not None:
            self.transformer.set_input_scale(name, input_scale)
        if raw_scale is not None:
            self.transformer.set_raw_scale(name, raw_scale)
        if channel_swap is not None:
            self.transformer.set_channel_swap(name, channel_swap)

    def outputs_for(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The first output for images of the input's size, each (height, width, channels)."""
        name = self.inputs[0]
        fed = np.stack([self.transformer.preprocess(name, image) for image in images])
        inputs: dict[str, Any] = {name: fed}
        return self.forward_all(**inputs)[self.outputs[0]]


class Classifier(ImageNet):
    """A net that classifies images.

    Args:
        model_file: The prototxt.
        pretrained_file: The weights.
        image_dims: Height and width to which images are resized before they are cropped; the input's by default.
        mean, input_scale, raw_scale, channel_swap: See :class:`ImageNet`.
    """

    def __init__(
        self,
        model_file: Any,
        pretrained_file: Any,
        image_dims: Sequence[int] | None = None,
        *args: Any,
        **keywords: Any,
    ) -> None:
        super().__init__(model_file, pretrained_file, *args, **keywords)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].dims[2:])
        self.image_dims = self.crop_dims if image_dims is None or not len(image_dims) else image_dims

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """The probabilities of the classes.

        Args:
            inputs: Images, each (height, width, channels).
            oversample: Take the mean over ten crops; see :func:`bridge.caffe.io.oversample`. Else the centre counts.

        Returns:
            (images, classes) float32.
        """
        height, width = (int(extent) for extent in self.image_dims)
        images = np.stack([io.resize_image(image, (height, width)) for image in inputs])
        if oversample:
            outputs = self.outputs_for(io.oversample(images, self.crop_dims))  # type: ignore[arg-type]
            return np.asarray(outputs.reshape(len(outputs) // 10, 10, -1).mean(1))
        (top, left), (bottom, right) = (
            (np.array(self.image_dims) / 2.0 + half).astype(int)
            for half in (-self.crop_dims / 2.0, self.crop_dims / 2.0)
        )
        return self.outputs_for(images[:, top:bottom, left:right, :])  # type: ignore[arg-type]
