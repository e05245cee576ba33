"""Classify pictures with the model of a finished run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge import engines
from bridge.errors import FormatError, MissingExtraError, MissingFileError
from bridge.finetuning.preprocess import ImageTransform


def classify(run_dir: str | Path, images: Sequence[str | Path], top: int) -> list[list[dict[str, Any]]]:
    """The most likely classes of each picture; for a net without classes, its output numbers.

    Args:
        run_dir: Folder of a finished run.
        images: Paths of pictures.
        top: Number of classes per picture.

    Returns:
        Per picture a list of ``{"class": name, "score": number}``, the highest score first; without classes
        a list of ``{"value": number}``, one per output of the net.

    Raises:
        MissingFileError: The folder holds no finished run.
        FormatError: A picture cannot be read, or a file of the run is damaged.
        MissingExtraError: ONNX Runtime is not installed.
    """
    folder = Path(run_dir)
    settings, labels = _settings(folder), _lines(folder / "labels.txt")
    if problem := engines.missing("onnxruntime"):
        raise problem
    session = _session(folder / "model.onnx")
    return [_found(_run(session, settings, read_images(folder, [path])), labels, top) for path in images]


def _found(numbers: np.ndarray, labels: Sequence[str], top: int) -> list[dict[str, Any]]:
    if not labels:
        return [{"value": float(number)} for number in numbers]
    best = np.argsort(-numbers, kind="stable")[:top]
    return [{"class": labels[k] if k < len(labels) else str(k), "score": float(numbers[k])} for k in best]


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
    import importlib.util

    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("reading pictures needs Pillow", hint="pip install 'weight-bridge[plot]'")
    from bridge.finetuning.images import decode_picture

    folder = Path(run_dir)
    settings = _settings(folder)
    try:
        preprocess = ImageTransform.from_json(settings, folder)
        (height, width), channels = settings["resize"], settings["shape"][0]
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise FormatError(f"is not what finetune wrote: {error}", where=str(folder / "preprocess.json")) from None
    pixels = []
    for path in images:
        made = decode_picture((str(path), height, width, channels))
        if isinstance(made, str):
            if not Path(path).exists():
                raise MissingFileError("does not exist", where=str(path))
            raise FormatError(f"is no picture: {made}", where=str(path))
        pixels.append(made)
    return preprocess.apply(np.stack(pixels))


def _session(path: Path) -> Any:
    import onnxruntime

    from bridge.engines.onnxruntime import raised

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except raised() as error:
        if not path.exists():
            raise MissingFileError("does not exist", where=str(path), hint="finetune says why it made none") from None
        raise FormatError(f"ONNX Runtime refuses it: {' '.join(str(error).split())}", where=str(path)) from None


def _run(session: Any, settings: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """The net's outputs for one image, (n)."""
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
