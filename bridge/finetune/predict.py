"""Classifying pictures with the products of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge import engines
from bridge.errors import FormatError, MissingFileError
from bridge.finetune.images import decode
from bridge.finetune.preprocess import Preprocess


def classify(run_dir: str | Path, images: Sequence[str], top: int) -> list[list[dict[str, Any]]]:
    """The most likely classes of each picture.

    Args:
        run_dir: Folder of a finished run.
        images: Paths of pictures.
        top: How many classes.

    Returns:
        Per picture, ``{"class": name, "score": number}`` with the highest score first.

    Raises:
        MissingFileError: The folder holds no finished run.
        FormatError: A picture cannot be read.
        MissingExtraError: ONNX Runtime is not installed.
    """
    folder = Path(run_dir)
    settings = _settings(folder)
    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    if problem := engines.missing("onnxruntime"):
        raise problem
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    preprocess = Preprocess.from_json(settings)
    height, width = settings["resize"]
    result = []
    for path in images:
        pixels = decode((path, height, width, settings["channels"]))
        if isinstance(pixels, str):
            raise FormatError(f"is no picture: {pixels}", where=path)
        scores = session.run(None, {settings["input"]: preprocess.apply(pixels[None])})[0].reshape(-1)
        best = np.argsort(-scores, kind="stable")[:top]
        result.append([{"class": _name(labels, k), "score": float(scores[k])} for k in best])
    return result


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    except OSError:
        raise MissingFileError("holds no finished run", where=str(folder), hint="name the folder given to finetune -o") from None
    except ValueError:
        raise FormatError("is no JSON", where=str(folder / "preprocess.json")) from None
    return settings
