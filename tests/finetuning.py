"""What the tests of the fine-tuning runner share: small runs and a look into their folders."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.finetuning import blas
from tests.conftest import FASHION, ROOT, need

MODEL = (str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel"))
NAMES = ("bag", "boot", "coat")
"""Classes of :func:`small_pictures`."""


def small_npz(path: Path, count: int = 160, classes: int = 4) -> Path:
    """Images of the first classes of Fashion-MNIST."""
    with np.load(FASHION / "fashion_mini.npz") as data:
        chosen = np.flatnonzero(data["y_train"] < classes)[:count]
        np.savez(path, x=data["x_train"][chosen], y=data["y_train"][chosen].astype(np.int64))
    return path


def small_pictures(root: Path) -> Path:
    """A folder per class with small grey pictures in five formats, 3 classes of 24."""
    need("PIL")
    from PIL import Image

    with np.load(FASHION / "fashion_mini.npz") as data:
        x, y = data["x_train"], data["y_train"]
    for label, name in enumerate(NAMES):
        (root / name).mkdir()
        for place, index in enumerate(np.flatnonzero(y == label)[:24]):
            suffix = ("png", "jpg", "bmp", "tif", "webp")[place % 5]
            Image.fromarray(x[index]).save(root / name / f"{index}.{suffix}")
    return root


def loaded(source: str, **changes: Any) -> Any:
    from bridge.finetuning.data import Loading, load_data

    settings: dict[str, Any] = {"shape": (1, 28, 28), "resize": (28, 28), "workers": 0}
    return load_data(source, Loading(**{**settings, **changes}))


def config(tmp_path: Path, **changes: Any) -> Any:
    """Settings of a run of two epochs, with frozen convolutions and a new head."""
    from bridge.finetuning import Config, Recipe

    settings: dict[str, Any] = {
        "files": MODEL,
        "data": str(small_npz(tmp_path / "data.npz")),
        "output": str(tmp_path / "run"),
        "heads": ("fc8=4",),
        "freeze": ("conv*",),
        "epochs": 2,
        "batch_size": 32,
        "scale": 1 / 256,
        "recipe": Recipe(momentum=0.9, weight_decay=5e-4, seed=7),
        "validation_share": 0.2,
    }
    return Config(**{**settings, **changes})


def run(settings: Any, notes: list[str] | None = None) -> Any:
    """Run it to its products."""
    from bridge.finetuning import Listener, finetune

    return finetune(settings, listener=Listener() if notes is None else Listener(note=notes.append))


def trained(settings: Any, notes: list[str] | None = None) -> Any:
    """Run it without making products; its loop."""
    from bridge.finetuning.listener import Listener
    from bridge.finetuning.run import begin

    loop = begin(settings, Listener() if notes is None else Listener(note=notes.append))
    loop.run()
    return loop


def stopped(settings: Any, steps: int) -> None:
    """Begin a run that is cut off after so many steps."""
    from bridge.finetuning.listener import Listener
    from bridge.finetuning.run import begin

    def pull_the_plug(record: dict[str, Any]) -> None:
        if record["iteration"] + 1 == steps:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        begin(settings, Listener(pull_the_plug)).run()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in log_of(folder)]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "model.npz") as archive:
        return {name: archive[name] for name in archive.files}


def same_bits(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same parameters and the same log."""
    mine, theirs = parameters(one), parameters(other)
    equal = all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
    return mine.keys() == theirs.keys() and equal and log_of(one) == log_of(other)


def need_exact() -> None:
    """Skip where a replay cannot have Caffe's bits: they take OpenBLAS's kernels for Haswell."""
    need("threadpoolctl")
    found = blas.loaded()
    if not blas.has_kernels() or found is None or found.library != "openblas":
        pytest.skip("NumPy has not OpenBLAS's kernels for Haswell here")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bridge", *map(str, arguments)]


def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 300}
    return subprocess.run(command(*arguments), **{**settings, **options})


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}
