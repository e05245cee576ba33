"""OpenCV's classes that wrap a net, such as ``cv2.dnn.DetectionModel``, for nets that were read from Caffe files.

OpenCV 5's own take no net of its ONNX reader: ``predict`` asks such a net for its layers, and fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridge.errors import UsageError
from bridge.opencv.net import CaffeNet

Read = Callable[..., Any]
"""Reads the files that such a class is given; gives ``None`` if they are not Caffe's."""


class _Model:
    """``cv2.dnn.Model``: a net and what is done to an image before.

    An image (H, W, C) is resized to the size that the file names, or that is set; then the mean is subtracted, and
    the result multiplied by the scale.

    Args:
        network: The net, from ``readNetFromCaffe``.

    Source: OpenCV model.cpp.
    """

    def __init__(self, network: CaffeNet) -> None:
        import cv2

        self._cv2, self._net = cv2, network
        self._given = cv2.dnn.Image2BlobParams()
        self._names: Sequence[str] = network.getUnconnectedOutLayersNames()
        if network.size:
            self._given.size = network.size

    def setInputSize(self, *size: Any) -> _Model:
        """Set width and height, as two numbers or a pair."""
        self._given.size = tuple(size) if len(size) == 2 else size[0]
        return self

    def setInputMean(self, mean: Any) -> _Model:
        """Set the mean of each channel."""
        self._given.mean = mean
        return self

    def setInputScale(self, scale: Any) -> _Model:
        """Set the scale, one number or one for each channel."""
        self._given.scalefactor = (scale,) * 4 if np.isscalar(scale) else scale
        return self

    def setInputCrop(self, crop: bool) -> _Model:
        """Set whether the middle of an image is cut out instead of squeezing it."""
        modes = self._cv2.dnn.DNN_PMODE_CROP_CENTER, self._cv2.dnn.DNN_PMODE_NULL
        self._given.paddingmode = modes[not crop]
        return self

    def setInputSwapRB(self, swapRB: bool) -> _Model:
        """Set whether red and blue change places."""
        self._given.swapRB = bool(swapRB)
        return self

    def setInputParams(
        self, scale: Any = 1.0, size: Any = (0, 0), mean: Any = (), swapRB: bool = False, crop: bool = False
    ) -> None:
        """Set all of it."""
        self.setInputScale(scale).setInputSize(size).setInputMean(mean or (0,)).setInputSwapRB(swapRB).setInputCrop(
            crop
        )

    def setOutputNames(self, outNames: Sequence[str]) -> _Model:
        """Set what :meth:`predict` gives, by names of layers or blobs."""
        self._names = outNames
        return self

    def setPreferableBackend(self, backendId: int) -> _Model:
        """See ``cv2.dnn.Net``."""
        self._net.setPreferableBackend(backendId)
        return self

    def setPreferableTarget(self, targetId: int) -> _Model:
        """See ``cv2.dnn.Net``."""
        self._net.setPreferableTarget(targetId)
        return self

    def enableWinograd(self, useWinograd: bool) -> _Model:
        """See ``cv2.dnn.Net``."""
        self._net.enableWinograd(useWinograd)
        return self

    def predict(self, frame: np.ndarray) -> tuple[np.ndarray, ...]:
        """The net's outputs for an image, float32."""
        self._net.setInput(self._cv2.dnn.blobFromImageWithParams(frame, self._given))
        return tuple(self._net.forward(list(self._names)))

    def _only(self, frame: np.ndarray) -> np.ndarray:
        outputs = self.predict(frame)
        if len(outputs) != 1:
            raise UsageError(f"the net has {len(outputs)} outputs", expected="one", hint="setOutputNames chooses it")
        return outputs[0]


class ClassificationModel(_Model):
    """``cv2.dnn.ClassificationModel``."""

    _softmax = False

    def setEnableSoftmaxPostProcessing(self, enable: bool) -> ClassificationModel:
        """Set whether a softmax is taken of the net's output."""
        self._softmax = bool(enable)
        return self

    def getEnableSoftmaxPostProcessing(self) -> bool:
        """Whether a softmax is taken of the net's output."""
        return self._softmax

    def classify(self, frame: np.ndarray) -> tuple[int, float]:
        """The number of the best class, and its score."""
        scores = self._only(frame).reshape(-1)
        if self._softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        best = int(scores.argmax())
        return best, float(scores[best])


class KeypointsModel(_Model):
    """``cv2.dnn.KeypointsModel``."""

    def estimate(self, frame: np.ndarray, thresh: float = 0.5) -> np.ndarray:
        """The place (x, y) in the image of each point, float32; (-1, -1) where the map stays below ``thresh``.

        The last map of the net's output, (1, points + 1, H, W), is the background. Any other output is the points.
        """
        maps = self._only(frame)
        if maps.ndim != 4:
            return maps[0, :, :2]
        maps = maps[0, :-1]
        height, width = maps.shape[1:]
        y, x = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), width)
        scale = np.float32(frame.shape[1]) / np.float32(width), np.float32(frame.shape[0]) / np.float32(height)
        points = np.stack([x, y], axis=1).astype(np.float32) * np.array(scale, np.float32)
        return np.where(maps.max(axis=(1, 2))[:, None] > thresh, points, np.float32(-1))


class SegmentationModel(_Model):
    """``cv2.dnn.SegmentationModel``."""

    def segment(self, frame: np.ndarray) -> np.ndarray:
        """The best class of each pixel of the net's output, (H, W), uint8."""
        classes: np.ndarray = self._only(frame)[0].argmax(axis=0)
        return classes.astype(np.uint8)


class DetectionModel(_Model):
    """``cv2.dnn.DetectionModel``."""

    _across = False

    def setNmsAcrossClasses(self, value: bool) -> DetectionModel:
        """Kept, and without effect: see :meth:`detect`."""
        self._across = bool(value)
        return self

    def getNmsAcrossClasses(self) -> bool:
        """What was set."""
        return self._across

    def detect(self, frame: np.ndarray, confThreshold: float = 0.5, nmsThreshold: float = 0.0) -> tuple[Any, Any, Any]:
        """The detections in an image: class numbers, scores and boxes (x, y, width, height) in pixels.

        ``nmsThreshold`` changes nothing, in OpenCV too: DetectionOutput has left out what overlaps.

        Raises:
            UsageError: The net does not end in detections.
        """
        last = self._net.last
        if last.detections(0) is None:
            raise UsageError(f"{last.label} puts out no detections", expected="boxes", where=self._net.where)
        rows = np.concatenate([output.reshape(-1, 7) for output in self.predict(frame)])
        rows = rows[rows[:, 2] >= np.float32(confThreshold)]
        classes, scores, boxes = rows[:, 1].astype(np.int32), rows[:, 2], _boxes(rows, *frame.shape[:2])
        return (classes, scores, boxes) if len(classes) else ((), (), ())


def _boxes(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes in an image, from rows of DetectionOutput, in pixels or in parts of the image's size."""
    corners = rows[:, 3:].astype(np.int32)
    parts = (corners[:, 2:] - corners[:, :2] + 1 <= 2).any(axis=1)
    corners[parts] = (rows[parts, 3:] * np.array([width, height, width, height], np.float32)).astype(np.int32)
    extents = corners[:, 2:] - corners[:, :2] + 1
    limits = np.array([width, height], np.int32)
    starts = np.clip(corners[:, :2], 0, limits - 1)
    return np.concatenate([starts, np.clip(extents, 1, limits - starts)], axis=1)


_OURS = {
    each.__name__.lstrip("_"): each
    for each in (_Model, ClassificationModel, DetectionModel, KeypointsModel, SegmentationModel)
}


def model_classes(dnn: Any, read: Read) -> dict[str, type]:
    """OpenCV's model classes by name, each made to give one of this module for a net or files of Caffe's."""
    return {name: _either(ours, getattr(dnn, name), read) for name, ours in _OURS.items()}


def _either(ours: Any, base: Any, read: Read) -> type:
    def new(cls: Any, *args: Any, **keywords: Any) -> Any:
        given = args[0] if args else keywords.get("network")
        net = given if type(given) is CaffeNet else read(*args, **keywords)
        return base(*args, **keywords) if net is None else ours(net)

    return type(base.__name__, (base,), {"__new__": new, "__doc__": ours.__doc__})
