"""The engine OpenCV, which has its own importer of Caffe files. OpenCV 5 has it no more.

It is known to differ from Caffe (LRN's k, InnerProduct's transpose, Axpy, dilated
Deconvolution), so it runs when it is asked for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.engines import Arrays, Tops
from bridge.engines.files import definition_of, weights_of
from bridge.engines.pieces import Segment, name_of, piece
from bridge.errors import BridgeError, MissingExtraError, UnsupportedLayerError
from bridge.schema import ServedNet, Shape, count

OPENCV_HINT = "pip install 'opencv-python-headless<5'"


class Engine:
    """See :class:`bridge.engines.Engine`."""

    def __init__(self, net: ServedNet) -> None:
        self._net = net

    @staticmethod
    def lacking(net: ServedNet) -> list[int]:
        """Indices of the layers that this OpenCV refuses, if it refuses the net: each is tried alone, on zeros."""
        try:
            shapes = net.infer()
        except BridgeError:  # whoever runs the net gives the shapes
            return []
        inputs = {name: np.zeros(shape or (), np.float32) for name, shape in net.inputs.items()}
        if _takes(net, inputs):
            return []
        reads, found = net.flow.fed_reads(), []
        for index, layer in enumerate(net.layers):
            if not layer.is_input:
                part = Segment((index,), tuple(dict.fromkeys(reads[index])))
                fed = {
                    name_of(place): np.zeros(shapes[place.layer][place.top], np.float32)
                    if place.layer >= 0
                    else list(inputs.values())[place.top]
                    for place in part.inputs
                }
                if not _takes(piece(net, part, reads), fed):
                    found.append(index)
        return found

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        last: dict[str, np.ndarray] = {}
        for layer, arrays in zip(self._net.layers, self.tops(inputs), strict=True):
            last.update({top: array for top, array in zip(layer.tops, arrays, strict=True) if array is not None})
        return {name: last[name] for name in self._net.outputs if name in last}

    def tops(self, inputs: Arrays) -> list[Tops]:
        cv2 = import_opencv()
        shapes = self._net.infer({name: array.shape for name, array in inputs.items()})
        files = (definition_of(self._net, inputs).encode(), weights_of(self._net))
        try:
            loaded = cv2.dnn.readNetFromCaffe(*(np.frombuffer(data, np.uint8) for data in files))
            feed(loaded, inputs)
            names = _names(self._net, loaded.getLayerNames())
            asked = list(dict.fromkeys(names.values()))
            found = dict(zip(asked, loaded.forwardAndRetrieve(asked), strict=True)) if asked else {}
        except cv2.error as error:
            raise refusal(error, self._net) from None
        return [
            tuple(map(inputs.get, layer.tops)) if layer.is_input else _tops(found.get(names.get(index, "")), wanted)
            for index, (layer, wanted) in enumerate(zip(self._net.layers, shapes, strict=True))
        ]


def _names(net: ServedNet, known: Sequence[str]) -> dict[int, str]:
    """What OpenCV calls each layer, by index: the layer's name, or for the last one of a net its top's."""
    own = set(net.layer_names)
    names = {index: [layer.name, *(top for top in layer.tops if top not in own)] for index, layer in enumerate(net)}
    found = {index: next((name for name in wanted if name in known), "") for index, wanted in names.items()}
    return {index: name for index, name in found.items() if name}


def _takes(net: ServedNet, inputs: Arrays) -> bool:
    """Whether OpenCV runs a net."""
    try:
        Engine(net).tops(inputs)
    except UnsupportedLayerError:
        return False
    return True


def import_opencv(importer: str = "readNetFromCaffe") -> Any:
    """OpenCV, of a version with an importer of the given name.

    Raises:
        MissingExtraError: It is not installed, or of another version.
    """
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        raise MissingExtraError("OpenCV is not installed", hint=OPENCV_HINT) from None
    if not hasattr(cv2.dnn, importer):
        raise MissingExtraError(f"OpenCV {cv2.__version__} has no {importer}", hint=OPENCV_HINT)
    return cv2


def missing(_: object = None) -> MissingExtraError | None:
    """Why the engine does not work here: OpenCV 5 is installed, and has no importer of Caffe files."""
    try:
        import_opencv()
    except MissingExtraError as error:
        return error
    return None


def feed(loaded: Any, inputs: Arrays) -> None:
    """Set the inputs of an OpenCV net, and turn off fused layers and Winograd convolution."""
    if hasattr(import_opencv("readNetFromONNX").dnn, "readNetFromCaffe"):  # in OpenCV 5 this call drops the inputs
        loaded.enableFusion(False)
    if hasattr(loaded, "enableWinograd"):  # its error has no bound by the terms of the sum
        loaded.enableWinograd(False)
    for name, array in inputs.items():
        loaded.setInput(np.ascontiguousarray(array, np.float32), name)


def refusal(error: Exception, net: ServedNet) -> UnsupportedLayerError:
    """The error for what OpenCV raised."""
    text = " ".join(str(getattr(error, "err", "") or error).split())
    return UnsupportedLayerError(f"OpenCV refuses the net: {text[:300]}", where=net.where)


def in_shape(array: np.ndarray, shape: Shape) -> np.ndarray:
    """An array in Caffe's shape; OpenCV's arrays have at least two axes."""
    return array.reshape(shape) if array.size == count(shape) else array


def _tops(found: Any, shapes: tuple[Shape, ...]) -> Tops:
    if found is None or len(found) < len(shapes):  # a MAX pooling gives its mask, asked for or not
        return (None,) * len(shapes)
    return tuple(in_shape(np.array(array), shape) for array, shape in zip(found, shapes, strict=False))
