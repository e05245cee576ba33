"""Caffe files as ``cv2.dnn.Net``, on an OpenCV that reads them no more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.caffe_files.inference import channels_of, inference_net
from bridge.errors import MissingExtraError, ModelError, UnsupportedLayerError, UsageError
from bridge.files.load import load
from bridge.files.sniff import HEAD, identify
from bridge.opencv.detections import with_padded_detections
from bridge.opencv.models import model_classes
from bridge.opencv.net import CaffeNet
from bridge.schema import Net, Shape

if TYPE_CHECKING:
    from bridge.onnx_export.dims import Extent

InputExtents = Mapping[str, Sequence["Extent"]]
_HINT = 'pip install "opencv-python-headless>=4.10"'
_TEXT = ("prototxt",)
_FRAMEWORKS = ("caffe", "tensorflow", "onnx", "tflite", "darknet", "torch", "dldt")


def readNetFromCaffe(
    prototxt: Any = b"", caffeModel: Any = b"", *, bufferProto: Any = b"", bufferModel: Any = b""
) -> Any:
    """Read a Caffe model as OpenCV 4's ``cv2.dnn.readNetFromCaffe`` does.

    Args:
        prototxt: Path of the prototxt, or its content as bytes or an array of uint8.
        caffeModel: Path of the caffemodel, or its content; empty for a net without weights.
        bufferProto: Another name of the first, for its content.
        bufferModel: Another name of the second.

    Returns:
        What stands for a ``cv2.dnn.Net``, see :class:`bridge.opencv.net.CaffeNet`. Batch, height and width of
        its inputs are open where the net allows that. Rows of
        detections are filled up with zeros to ``keep_top_k`` for each image, as OpenCV's own layer does.

    Raises:
        MissingFileError: A file does not exist.
        FormatError: A file is damaged, or not what it seems.
        ModelError: The net does not fit together, or lacks weights.
        UnsupportedLayerError: Layers that OpenCV cannot run; names all of them.
        MissingExtraError: OpenCV is not installed.

    Source: OpenCV ``cv::dnn::readNetFromCaffe``.
    """
    cv2 = _cv2()
    prototxt = bufferProto if _empty(prototxt) else prototxt
    caffeModel = bufferModel if _empty(caffeModel) else caffeModel
    own = _own(cv2, "readNetFromCaffe")
    if own is not None:
        try:
            return own(*(_plain(part) for part in (prototxt, caffeModel) if not _empty(part)))
        except cv2.error:
            pass  # what it cannot read, or refuses, is read here
    served = _served(_load(prototxt, caffeModel))
    return CaffeNet(served, lambda net: _opened(cv2, net))


def readNet(*args: Any, **keywords: Any) -> Any:
    """``cv2.dnn.readNet``, with Caffe files too.

    ``readNet(model, config)`` takes paths in any order, ``readNet("caffe", model, config)`` buffers. Other
    files go to ``cv2.dnn.readNet`` itself. Args, Returns and Raises as :func:`readNetFromCaffe`.
    """
    cv2 = _cv2()
    files = _caffe_files(*args, **keywords)
    return readNetFromCaffe(*files) if files is not None else _own(cv2, "readNet")(*args, **keywords)


def install() -> None:
    """Put :func:`readNetFromCaffe` into ``cv2.dnn`` where it is missing.

    Then ``cv2.dnn.readNet`` reads Caffe files too, and ``cv2.dnn.DetectionModel`` and OpenCV's other classes that
    wrap a net take Caffe files and nets that were read from them.

    An OpenCV that reads them itself stays as it is. Calling it again does nothing.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = _cv2()
    if hasattr(cv2.dnn, "readNetFromCaffe"):
        return
    for name in ("readNet", "readNetFromCaffe"):
        _own(cv2, name)
    cv2.dnn.readNetFromCaffe = readNetFromCaffe
    cv2.dnn.readNet = readNet
    if not hasattr(cv2.dnn, "DNN_BACKEND_HALIDE"):
        cv2.dnn.DNN_BACKEND_HALIDE = 1  # OpenCV's samples name it among their options
    for name, made in model_classes(cv2.dnn, _read_caffe).items():
        setattr(cv2.dnn, name, made)
        setattr(cv2, f"dnn_{name}", made)


def _read_caffe(*args: Any, **keywords: Any) -> Any:
    """The net of Caffe files; ``None`` if these are other files, or none."""
    if not args or not _is_path(args[0]):
        return None
    files = _caffe_files(*args, **keywords)
    return readNetFromCaffe(*files) if files is not None else None


_ORIGINAL: dict[str, Any] = {}


def _own(cv2: Any, name: str) -> Any:
    """OpenCV's own function of a name; ``None`` if it has none.

    It is kept from the first time on: a script may wrap what :func:`install` put in its place.
    """
    found = getattr(cv2.dnn, name, None)
    return _ORIGINAL.setdefault(name, None if found in (readNet, readNetFromCaffe) else found)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(f"OpenCV does not import: {error}", hint=_HINT) from None
    return cv2


# -- what is read ----------------------------------------------------------------------------------


def _is_path(part: Any) -> bool:
    return isinstance(part, (str, os.PathLike))


def _empty(part: Any) -> bool:
    return part is None or (not _is_path(part) and len(part) == 0) or (isinstance(part, str) and not part)


def _plain(part: Any) -> Any:
    """A path or a buffer as OpenCV takes it."""
    return os.fspath(part) if _is_path(part) else np.frombuffer(_bytes(part), np.uint8)


def _bytes(part: Any) -> bytes:
    return bytes(np.asarray(part, np.uint8)) if isinstance(part, np.ndarray) else bytes(part)


def _caffe_files(*args: Any, **keywords: Any) -> tuple[Any, Any] | None:
    """Prototxt and caffemodel in the arguments of ``readNet``; ``None`` if these are other files."""
    names = ("model", "config", "framework")
    if args and not _is_framework(args[0]):
        given = dict(zip(names, args, strict=False)) | keywords
    else:
        given = dict(zip(("framework", "bufferModel", "bufferConfig"), args, strict=False)) | keywords
    framework = str(given.get("framework") or "").lower()
    parts = [given.get(name) for name in ("model", "bufferModel", "config", "bufferConfig")]
    parts = [part for part in parts if not _empty(part)]
    ends = [str(part).lower() for part in parts if _is_path(part)]
    named = any(end.endswith((".caffemodel", ".prototxt")) for end in ends)
    if not parts or not (framework == "caffe" or (not framework and named)):
        return None
    texts = [part for part in parts if _is_text(part)]
    models = [part for part in parts if not any(part is text for text in texts)]
    if len(texts) != 1 or len(models) > 1:
        raise UsageError("readNet: the two files are not known", expected="a prototxt and a caffemodel")
    return texts[0], models[0] if models else b""


def _is_framework(part: Any) -> bool:
    return isinstance(part, str) and part.lower() in _FRAMEWORKS


def _is_text(part: Any) -> bool:
    if _is_path(part):
        return str(os.fspath(part)).lower().endswith((".prototxt", ".txt", ".pt"))
    return identify(_bytes(part)[:HEAD]) in _TEXT


def _load(definition: Any, model: Any) -> Net:
    if _is_path(definition) and (_is_path(model) or _empty(model)):
        return load(definition, *([] if _empty(model) else [model]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        files = [_file(definition, Path(folder, "buffer.prototxt"))]
        if not _empty(model):
            files.append(_file(model, Path(folder, "buffer.caffemodel")))
        return load(*files)


def _file(part: Any, place: Path) -> Path:
    if _is_path(part):
        return Path(os.fspath(part))
    place.write_bytes(_bytes(part))
    return place


# -- what is made of it ----------------------------------------------------------------------------


def _to_opencv(cv2: Any, net: Net) -> Any:
    """The net in OpenCV, with as many open extents as it takes."""
    return _opened(cv2, _served(net))


def _served(net: Net) -> Net:
    """The net for inference, with OpenCV's rows of detections; complete.

    What only a Silence reads is an output, as in OpenCV 4.
    """
    loud = net.replace(layers=tuple(layer for layer in net if layer.tops))
    served = with_padded_detections(inference_net(loud))
    _check(served)
    return served


def _opened(cv2: Any, served: Net) -> Any:
    """A served net in OpenCV, with as many open extents as it takes."""
    for inputs in _wishes(served):
        try:
            made = _made(cv2, served, inputs)
            if _holds(cv2, served, made, inputs):
                return made
        except (ModelError, UsageError, cv2.error):
            continue
    try:
        return _made(cv2, served, None)
    except cv2.error as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedLayerError(f"OpenCV {cv2.__version__} cannot read it: {reason}", where=served.where) from None


def _made(cv2: Any, net: Net, inputs: InputExtents | None) -> Any:
    """The net in OpenCV, with these extents of its inputs; without any, batches stay open where they can be."""
    from bridge.onnx_export import to_onnx_file

    file, _ = to_onnx_file(net, inputs=inputs, dynamic_sides=False)
    return cv2.dnn.readNetFromONNX(np.frombuffer(file.tobytes(), np.uint8))


def _holds(cv2: Any, net: Net, made: Any, inputs: InputExtents) -> bool:
    """Whether OpenCV computes with open extents what it computes with fixed ones, at another size.

    OpenCV 5 takes a graph with open extents and may then give another shape, as after AVE pooling with a pad.
    """
    symbols = {"batch": 2, **dict(zip(("height", "width"), _another(net, inputs), strict=True))}
    sizes = {
        name: [symbols[extent] if isinstance(extent, str) else extent for extent in extents]
        for name, extents in inputs.items()
    }
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in sizes.items()}
    return all(map(_same, _run(made, values), _run(_made(cv2, net, sizes), values)))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))


def _another(net: Net, inputs: InputExtents) -> tuple[int, int]:
    """A height and width that are not the file's."""
    shape = net.inputs[next(iter(inputs))] or (1, 1, 224, 224)
    return shape[2] + 33, shape[3] + 64


def _run(made: Any, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    for name, value in values.items():
        made.setInput(value, name)
    return [made.forward(name).copy() for name in made.getUnconnectedOutLayersNames()]


def _check(net: Net) -> None:
    """Refuse a net that lacks weights, before a filler makes some up."""
    missing = [layer.label for layer in net.layers if layer.uncovered or (not layer.blobs and layer.roles(0))]
    if missing:
        problem = f"{missing[0]} has no weights" + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise ModelError(problem, where=net.where, hint="give the caffemodel")


def _wishes(net: Net) -> Iterator[InputExtents]:
    """Extents of the inputs with open height and width to try, the most open ones first."""
    shapes: dict[str, Shape | None] = {
        name: shape or ((1, channels, 224, 224) if (channels := channels_of(net, name)) else None)
        for name, shape in net.inputs.items()
    }
    if any(shape is None or len(shape) != 4 for shape in shapes.values()):
        return
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    if known and len({shape[2:] for shape in known.values()}) == 1:
        yield {name: ["batch", shape[1], "height", "width"] for name, shape in known.items()}
        yield {name: [shape[0], shape[1], "height", "width"] for name, shape in known.items()}
