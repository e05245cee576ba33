"""Fine-tuning from Python: a net, data, and what is to become of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bridge.errors import UsageError
from bridge.finetuning.config import Config
from bridge.finetuning.data import Data
from bridge.finetuning.listener import Listener
from bridge.finetuning.material import Material
from bridge.finetuning.recipe import Recipe
from bridge.finetuning.run import Run, execute
from bridge.schema import Net

Dataset = str | Path | Data | tuple[np.ndarray, np.ndarray]
"""A path as for ``--data``, or images (N, C, H, W) and labels (N)."""
_USUAL = Recipe(momentum=0.9, weight_decay=0.0005)


def finetune(
    net: Net | Config,
    data: Dataset | None = None,
    *,
    output: str | Path = "",
    head: Mapping[str, int] | None = None,
    validation: Dataset | None = None,
    freeze: str | tuple[str, ...] = (),
    train: str | tuple[str, ...] = (),
    train_head: bool = False,
    epochs: int = 10,
    batch_size: int = 0,
    recipe: Recipe = _USUAL,
    mean: str | None = None,
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    mirror: bool | None = None,
    embed_preprocessing: bool = False,
    device: str = "@numpy",
    listener: Listener | None = None,
) -> Run:
    """Fine-tune a net and write the products into a folder.

    ``bridge.finetune(net, "pictures", output="run", head={"fc8": 5}, train_head=True, mean="104,117,123")`` trains a
    new last layer on the pictures in the folders ``pictures/CLASS/``.

    What a run computes follows from its settings, the data, the processor and the installed packages: two runs with
    the same seed end in the same bits, on the CPU.

    Args:
        net: The net, as :func:`bridge.load` gives it; or a :class:`Config`, which has all other settings, too.
        data: Training data: a path as for ``--data``, or images (N, C, H, W), uint8 or float32, and labels (N).
        output: The run's folder.
        head: Layer -> the number of its new outputs.
        validation: Held-out data of the same kinds; by default a tenth of each class.
        freeze: Patterns of the names of layers to freeze; the normalisations that belong to them are frozen, too.
        train: Patterns of the names of layers to train; all others are frozen.
        train_head: Whether new heads are trained, and all other layers are frozen.
        epochs: Passes over the data.
        batch_size: Images per step; 0 is the net's own, where it was made for training, or 32.
        recipe: The update rule and its rates; SGD with a rate of 0.01 by default.
        mean: Mean that is taken off: one number, one per channel (``"104,117,123"``), or a .binaryproto.
        scale: Factor on images after that.
        resize: (height, width) that pictures are brought to.
        crop: (height, width) cut out of them.
        mirror: Whether training flips images at random.
        embed_preprocessing: Whether ``model.onnx`` takes pictures as they are: 8-bit RGB, N x H x W x 3, of any size.
        device: Chainer's name of a device.
        listener: Whom the run tells what it does; nobody by default.

    Returns:
        The finished run: ``run.chain``, ``run.history``, ``run.files``, ``run.evaluation``, ``run.verdict``.

    Raises:
        UsageError: Data or folder are missing, or a setting makes no sense.
        BridgeError: Whatever ends the run early, in one line; snapshots that were saved are kept.
    """
    if isinstance(net, Config):
        return execute(net, listener)
    if data is None or not output:
        raise UsageError("finetune needs data and output", hint='bridge.finetune(net, "pictures", output="run")')
    config = Config(
        files=net.sources or (net.where,),
        data=_named(data),
        output=str(output),
        validation=_named(validation) if validation is not None else "",
        heads=tuple(f"{layer}={outputs}" for layer, outputs in (head or {}).items()),
        freeze=_patterns(freeze),
        train=_patterns(train),
        train_head=train_head,
        epochs=epochs,
        batch_size=batch_size,
        recipe=recipe,
        mean=mean,
        scale=scale,
        resize=resize,
        crop=crop,
        mirror=mirror,
        embed_preprocessing=embed_preprocessing,
        device=device,
    )
    return execute(config, listener, material=Material(net, _arrays(data), _arrays(validation)))


def _named(data: Dataset) -> str:
    """The name of the data in messages, and in the settings that are written."""
    return str(data) if isinstance(data, (str, Path)) else "arrays"


def _arrays(data: Dataset | None) -> Data | tuple[np.ndarray, np.ndarray] | None:
    return None if isinstance(data, (str, Path)) else data


def _patterns(patterns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
