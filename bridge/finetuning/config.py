"""What a run is asked to do."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import FormatError, OutputError, UsageError
from bridge.files.atomic import atomic
from bridge.finetuning.recipe import Recipe

MAPPED = "images-"
"""How the files of decoded pictures in a run's folder begin."""
_NAME = "config.json"


@dataclass(frozen=True)
class Config:
    """A run's settings.

    Attributes:
        files: The model, ``[PROTOTXT] WEIGHTS``.
        data: Training data: a folder, an .npz, a list file or ``module:function``.
        output: The run's folder.
        validation: Validation data of the same kinds; else a share of the training data.
        validation_share: That share.
        classes: The classes' names, where the data have none.
        root: Folder that the paths of a list file are in.
        heads: ``fc8=10``: new heads.
        freeze: Patterns of layers to freeze.
        unfreeze_at: Epoch at which frozen layers start to learn; negative is never.
        epochs: Passes over the data, where the recipe has no ``max_iter``.
        batch_size: Images per step, of all processes together; 0 is the train prototxt's, or 32.
        recipe: How parameters are updated.
        lr_mult: Pattern -> factor on the learning rate.
        device: Chainer's name of a device, such as ``@numpy`` or ``@cupy:0``.
        communicator: ChainerMN's, where several processes train together.
        scale, mean, crop, resize, mirror, swap: Preprocessing; ``None`` is the prototxt's.
        workers, max_bad: For pictures.
        cache: Whether to compute the frozen trunk once.
        cache_memory: Bytes of features, or of decoded pictures, to keep in memory; more go to files.
        cache_dir: Folder of the features' files, shared between runs.
        augment_cache: Draws per image in the cache; 0 turns it off where images are augmented.
        trunk_engine: ``auto``, ``chainer`` or ``onnxruntime``.
        snapshot_every: Iterations between snapshots; 0 is now and then.
        patience: Epochs without a better validation loss after which to stop; 0 is never.
        use_best: Make the model of the best epoch's parameters, not of the last one's.
        half: Store arrays as float16, on a GPU.
        resume: Go on where the run in the folder stopped.
        reading: Arguments for :func:`bridge.load`.
    """

    files: tuple[str, ...]
    data: str
    output: str
    validation: str = ""
    validation_share: float = 0.1
    classes: tuple[str, ...] = ()
    root: str = ""
    heads: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    unfreeze_at: int = -1
    epochs: int = 10
    batch_size: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    lr_mult: dict[str, float] = field(default_factory=dict)
    device: str = "@numpy"
    communicator: str = ""
    scale: float | None = None
    mean: str | None = None
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    mirror: bool | None = None
    swap: bool = False
    workers: int = 2
    max_bad: int = 0
    cache: bool = True
    cache_memory: int = 1 << 30
    cache_dir: str = ""
    augment_cache: int = 0
    trunk_engine: str = "auto"
    snapshot_every: int = 0
    patience: int = 0
    use_best: bool = False
    half: bool = False
    resume: bool = False
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without what may differ when a run is resumed."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in ("resume", "output", "workers", "cache_dir", "cache_memory", "snapshot_every", "use_best"):
            del data[name]
        return data


def check_folder(config: Config) -> None:
    """Check that the run's folder is free, or holds this very run.

    Raises:
        UsageError: It is in use by a run and ``resume`` is not set, or by another run, or by something else.
    """
    path, folder = config.folder / _NAME, config.folder
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise UsageError("exists and holds no run", where=config.output, hint="name a new folder")
        return
    if not config.resume:
        raise UsageError("holds a run already", where=config.output, hint="--resume goes on with it")
    try:
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, TypeError) as error:
        raise FormatError(f"does not hold settings: {error}", where=str(path), hint="name a new folder") from None
    now = _flat(config.to_json())
    changed = [name for name in now if now[name] != before.get(name)]
    if changed and not _is_longer(config, changed, before):
        raise UsageError(
            f"was started with {changed[0]} = {before.get(changed[0])!r}, now it is {now[changed[0]]!r}",
            where=config.output,
            hint="resume with the same options, or use another folder",
        )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of the recipe beside the others."""
    flat = dict(settings)
    flat.update((f"recipe.{name}", value) for name, value in flat.pop("recipe", {}).items())
    return flat


def _is_longer(config: Config, changed: list[str], before: dict[str, Any]) -> bool:
    """Whether all that is new is more epochs, and they leave those before them as they were."""
    paced = config.recipe.lr_policy in ("poly", "cosine")
    return changed == ["epochs"] and not paced and config.epochs > before["epochs"]


def open_folder(config: Config) -> None:
    """Make the run's folder, with its settings.

    Raises:
        OutputError: It cannot be made.
    """
    path = config.folder / _NAME
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=config.output) from None
    with atomic(path) as file:
        file.write(json.dumps(config.to_json(), indent=2).encode())


def _is_foreign(entry: Path) -> bool:
    """Whether a run that was killed before its first step cannot have left it."""
    return not entry.name.startswith((".", MAPPED))
