"""The demo: read, verify, export, compare and fine-tune a small trained model.

The model is an AlexNet in miniature that the real Caffe trained on Fashion-MNIST.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bridge
from bridge.errors import DifferenceError, MissingExtraError, MissingFileError
from bridge.extras import pip

if TYPE_CHECKING:
    from bridge.finetuning import Run

EPOCHS = 5
MODEL_FILES = ("deploy.prototxt", "fashion_alexnet.caffemodel", "io.npz", "fashion_mini.npz")


def model_folder() -> Path:
    """The folder of the demo's model: in the wheel, or in the fixtures of a clone.

    Raises:
        MissingFileError: There is neither.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "demo_data", here.parent / "fixtures" / "fashion"):
        if all((folder / name).exists() for name in MODEL_FILES):
            return folder
    raise MissingFileError(
        "the demo's model is missing", where=str(here / "demo_data"), hint="install the wheel or clone the repository"
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits as images of the model's size.

    Returns:
        uint8 (N, 28, 28), scaled up from 8 x 8, and the digits, int64 (N).
    """
    from sklearn.datasets import load_digits

    small = load_digits()
    grow = _interpolation(8, 28)
    images = grow @ (small.images * (255 / 16)) @ grow.T
    return np.rint(images).astype(np.uint8), small.target.astype(np.int64)


def _interpolation(small: int, large: int) -> np.ndarray:
    """The matrix (large, small) that interpolates linearly; first and last values stay."""
    places = np.linspace(0, small - 1, large)
    return np.stack([np.interp(places, np.arange(small), unit) for unit in np.eye(small)], axis=1)


def run(say: Callable[[str], None], on_step: Callable[[dict[str, Any]], None]) -> list[tuple[str, str]]:
    """Run the demo.

    Args:
        say: Called with the name of each part as it begins.
        on_step: Called after each training step with its record.

    Returns:
        What was checked and what was found, a pair per line.

    Raises:
        BridgeError: A part failed.
    """
    if importlib.util.find_spec("sklearn") is None:  # now, and not after the first steps
        raise MissingExtraError("the demo needs scikit-learn", hint=pip("demo"))
    folder = model_folder()
    files = [str(folder / name) for name in MODEL_FILES[:2]]
    found = [("model", "AlexNet in miniature, trained by Caffe on Fashion-MNIST (141,927 bytes)")]
    with tempfile.TemporaryDirectory(prefix="bridge-demo-") as temporary:
        say("reading the model two independent ways")
        found.append(("readers protobuf and caffefunction", _readers(files)))
        say("exporting to ONNX and running it")
        found += _exported(files, folder, Path(temporary))
        say(f"fine-tuning to handwritten digits, {EPOCHS} epochs, convolutions frozen; then the same net from scratch")
        found += _tuned(files, Path(temporary), on_step)
    return found


def _readers(files: list[str]) -> str:
    report = bridge.verify(*files, readers=["protobuf", "caffefunction"], engines=[])
    if not report.passed:
        raise DifferenceError(str(report))
    return f"agree on {sum(result.count('same') for result in report.weights)} blobs, bit for bit"


def _exported(files: list[str], folder: Path, temporary: Path) -> list[tuple[str, str]]:
    from bridge.engines.onnxruntime import runtime

    ort = runtime()
    net = bridge.load(*files)
    bridge.export_onnx(net, temporary / "fashion.onnx")
    session = ort.InferenceSession(str(temporary / "fashion.onnx"), providers=["CPUExecutionProvider"])
    with np.load(folder / "io.npz", allow_pickle=False) as recorded:
        made = session.run(["prob"], {"data": recorded["in:data"]})[0]
        off = float(np.abs(made - recorded["out:prob"]).max())
    with np.load(folder / "fashion_mini.npz", allow_pickle=False) as images:
        x, y = images["x_test"][:, None].astype(np.float32) / 256, images["y_test"]
    right = float((session.run(["prob"], {"data": x})[0].argmax(axis=1) == y).mean())
    return [
        ("ONNX against Caffe's recorded prob", f"largest difference {off:.1e}"),
        ("accuracy before any training", f"{right:.1%} of {len(y)} test images of Fashion-MNIST"),
    ]


def _tuned(files: list[str], temporary: Path, on_step: Callable[[dict[str, Any]], None]) -> list[tuple[str, str]]:
    tuned = _train(files, temporary / "tuned", ("conv*",), on_step)
    scratch = _train(files[:1], temporary / "scratch", (), on_step)
    steps, held_out = tuned.outcome.iterations, len(tuned.validation or ())
    return [
        (
            f"digits, fine-tuned, {steps} steps",
            f"{_accuracy(tuned):.1%} of {held_out} held-out digits",
        ),
        (f"digits, from scratch, {steps} steps", f"{_accuracy(scratch):.1%} of the same"),
    ]


def _train(files: list[str], output: Path, freeze: tuple[str, ...], on_step: Callable[[dict[str, Any]], None]) -> Run:
    from bridge.finetuning import Config, Listener, Recipe, finetune

    recipe = Recipe(base_lr=0.01, momentum=0.9, weight_decay=0.0005)
    config = Config(
        files=tuple(files),
        data="bridge.cli.demonstration:digits",
        output=str(output),
        heads=("fc8=10",),
        freeze=freeze,
        epochs=EPOCHS,
        validation_share=0.3,
        scale=1 / 256,
        recipe=recipe,
    )
    return finetune(config, listener=Listener(on_step))


def _accuracy(run: Run) -> float:
    return run.evaluation.accuracy or 0.0 if run.evaluation is not None else 0.0
