"""Classify pictures with the model of a finished run."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridge import engines
from bridge.errors import BridgeError, FormatError, MissingFileError
from bridge.finetuning.images import decode_all, decode_picture, need_pillow, suffixes
from bridge.finetuning.listener import Work, silent
from bridge.finetuning.preprocess import ImageTransform
from bridge.onnx_export import Preprocess

_THREADS = os.cpu_count() or 1
"""Pictures that the net is computed for at a time, each by one thread."""


@dataclass(frozen=True)
class Prediction:
    """What the model of a run says about a picture.

    Attributes:
        image: The picture's path.
        found: ``{"class": name, "score": number}`` for the most likely classes, the highest score first; without
            classes ``{"value": number}`` for each output of the net. Empty for a picture that cannot be read.
        error: Why it cannot be read; else empty.
    """

    image: str
    found: tuple[dict[str, Any], ...] = ()
    error: str = ""


def classify(run_dir: str | Path, images: Sequence[str | Path], top: int) -> list[list[dict[str, Any]]]:
    """The most likely classes of each picture; for a net without classes, its output numbers.

    Args:
        run_dir: Folder of a finished run.
        images: Paths of pictures, and of folders with pictures in them or in their folders.
        top: Number of classes per picture.

    Returns:
        Per picture a list of ``{"class": name, "score": number}``, the highest score first; without classes
        a list of ``{"value": number}``, one per output of the net.

    Raises:
        MissingFileError: The folder holds no finished run, or a picture does not exist.
        FormatError: A picture cannot be read, or a file of the run is damaged.
        MissingExtraError: ONNX Runtime or Pillow is not installed.
    """
    made = []
    for prediction in predictions(run_dir, images, top):
        if prediction.error:
            raise _unreadable(prediction.image, prediction.error)
        made.append(list(prediction.found))
    return made


def predictions(
    run_dir: str | Path, images: Sequence[str | Path], top: int, workers: int = 2, work: Work = silent
) -> Iterator[Prediction]:
    """What the model says about each picture, in order; a picture that cannot be read has its reason.

    Pictures are decoded in processes of their own, and the net runs on several at a time, each on its own: a picture
    has the same numbers in any company.

    Args:
        run_dir: Folder of a finished run.
        images: Paths of pictures, and of folders with pictures in them or in their folders.
        top: Number of classes per picture.
        workers: Processes that decode pictures; 0 decodes in this one.
        work: Is told how many pictures are done.

    Raises:
        MissingFileError: The folder holds no finished run.
        FormatError: A file of the run is damaged, or a folder has no pictures.
        MissingExtraError: ONNX Runtime or Pillow is not installed.
    """
    folder = Path(run_dir)
    settings, labels = _settings(folder), _lines(folder / "labels.txt")
    if problem := engines.missing("onnxruntime"):
        raise problem
    session = _session(folder / "model.onnx")
    preprocess, size, channels = _reading(folder, settings)
    fed = _Feeding.of(session, preprocess)
    paths = pictures_of(images)
    decoded = zip(paths, decode_all(paths, size, channels, workers), strict=True)
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(itertools.islice(decoded, 4 * _THREADS)):
            work("classifying pictures", done, len(paths))
            inputs = [made if isinstance(made, str) else fed(made[None]) for _, made in chunk]
            for (path, _), numbers in zip(chunk, pool.map(lambda x: _run(session, settings, x), inputs), strict=True):
                if isinstance(numbers, str):
                    yield Prediction(str(path), (), numbers)
                else:
                    yield Prediction(str(path), _found(numbers, labels, top))
            done += len(chunk)


@dataclass(frozen=True)
class _Feeding:
    """Makes what a model takes of pictures that were read, uint8 (N, C, H, W), blue first.

    Attributes:
        preprocess: How the run makes the net's inputs.
        embedded: What of that the model does by itself; ``None`` where it takes the net's inputs.
    """

    preprocess: ImageTransform
    embedded: Preprocess | None

    @classmethod
    def of(cls, session: Any, preprocess: ImageTransform) -> _Feeding:
        texts = session.get_modelmeta().custom_metadata_map
        embedded, image = Preprocess.from_metadata(texts, "model.onnx")
        return cls(preprocess, embedded if image else None)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if self.embedded is None:
            return self.preprocess.apply(pixels)
        if self.embedded.swap_channels != self.preprocess.swap:
            pixels = pixels[:, ::-1]
        if self.embedded.input_layout == "nhwc":
            pixels = pixels.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pixels, np.uint8 if self.embedded.uint8 else np.float32)


def pictures_of(images: Sequence[str | Path]) -> list[Path]:
    """The pictures, with those in folders by their endings, in order of their paths.

    Raises:
        FormatError: A folder has no pictures.
    """
    paths: list[Path] = []
    for image in map(Path, images):
        if not image.is_dir():
            paths.append(image)
            continue
        known = suffixes()
        found = sorted(path for path in image.rglob("*") if path.suffix.lower() in known and path.is_file())
        if not found:
            raise FormatError("has no pictures", where=str(image))
        paths += found
    return paths


def _unreadable(path: str, reason: str) -> BridgeError:
    if not Path(path).exists():
        return MissingFileError("does not exist", where=path)
    return FormatError(f"is no picture: {reason}", where=path)


def _found(numbers: np.ndarray, labels: Sequence[str], top: int) -> tuple[dict[str, Any], ...]:
    if not labels:
        return tuple({"value": float(number)} for number in numbers)
    best = np.argsort(-numbers, kind="stable")[:top]
    return tuple({"class": labels[k] if k < len(labels) else str(k), "score": float(numbers[k])} for k in best)


def read_images(run_dir: str | Path, images: Sequence[str | Path]) -> np.ndarray:
    """Read pictures, and preprocess them for the net of a run.

    Args:
        run_dir: Folder of a finished run.
        images: Paths of pictures.

    Returns:
        float32 (N, C, H, W).

    Raises:
        MissingFileError: The folder holds no finished run, or a picture does not exist.
        FormatError: A picture cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    folder = Path(run_dir)
    preprocess, size, channels = _reading(folder, _settings(folder))
    pixels = []
    for path in images:
        made = decode_picture((str(path), *size, channels))
        if isinstance(made, str):
            raise _unreadable(str(path), made)
        pixels.append(made)
    return preprocess.apply(np.stack(pixels))


def _reading(folder: Path, settings: dict[str, Any]) -> tuple[ImageTransform, tuple[int, int], int]:
    """How a run reads pictures: preprocessing, (height, width) and channels."""
    need_pillow()
    try:
        preprocess = ImageTransform.from_json(settings, folder)
        height, width = settings["resize"]
        return preprocess, (int(height), int(width)), int(settings["shape"][0])
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise FormatError(f"is not what finetune wrote: {error}", where=str(folder / "preprocess.json")) from None


def _session(path: Path) -> Any:
    from bridge.engines.onnxruntime import raised, runtime

    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several pictures at a time
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except raised() as error:
        if not path.exists():
            raise MissingFileError("does not exist", where=str(path), hint="finetune says why it made none") from None
        raise FormatError(f"ONNX Runtime refuses it: {' '.join(str(error).split())}", where=str(path)) from None


def _run(session: Any, settings: dict[str, Any], pixels: np.ndarray | str) -> np.ndarray | str:
    """The net's outputs for one image, (n); a reason why there is no image stays what it is."""
    if isinstance(pixels, str):
        return pixels
    outputs = [output.name for output in session.get_outputs()]
    if settings["output"] not in outputs:
        raise FormatError(
            f"has the outputs {', '.join(outputs)}, preprocess.json names '{settings['output']}'", where="model.onnx"
        )
    return np.asarray(session.run([settings["output"]], {settings["input"]: pixels})[0]).reshape(-1)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "preprocess.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise MissingFileError(
            "holds no finished run", where=str(folder), hint="name the folder given to finetune -o"
        ) from None
    except ValueError:
        raise FormatError("is no JSON", where=str(path)) from None
    if not isinstance(settings, dict) or not {"input", "output"} <= settings.keys():
        raise FormatError("is not what finetune wrote", where=str(path))
    return settings
