"""The settings of a run, and the folder that it works in."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import FormatError, OutputError, UsageError
from bridge.files.atomic import atomic
from bridge.finetuning.lock import RunLock
from bridge.finetuning.recipe import Recipe
from bridge.finetuning.selection import Selection

MAPPED = "images-"
"""Prefix of the files of decoded pictures in a run's folder."""
LOOKS = ("data.png", "find_lr.")
"""What ``--show-data`` and ``--find-lr`` write there before a run."""
SETTINGS = "config.json"
"""The file of a run's settings."""
_FREE = (
    "resume", "output", "workers", "cache_dir", "cache_memory", "snapshot_every", "last", "communicator",
    "embed_preprocessing",
)  # fmt: skip
"""Settings that may change when a run is resumed: they do not change what it computes, but for the last place."""


@dataclass(frozen=True)
class Config:
    """The settings of a run, as ``bridge finetune`` takes them.

    Example: ``Config(files=("deploy.prototxt", "alexnet.caffemodel"), data="pictures", output="run",
    heads=("fc8=5",), freeze=("conv*",))`` trains an AlexNet to tell five classes apart.

    Attributes:
        files: The model, ``[PROTOTXT] WEIGHTS``.
        data: Training data: a folder with a folder per class, an .npz, a list file or ``module:function``.
        output: The run's folder.
        validation: Validation data of the same kinds; empty holds out a share of the training data.
        validation_share: That share of each class, 0 to 0.9.
        classes: The names of the classes, where the data have none.
        root: Folder that the paths of a list file start from; empty is the list file's own.
        heads: New heads, such as ``fc8=10`` or ``fc8=fc8_new:10``.
        freeze: Patterns of the names of layers to freeze; the normalisations that belong to them are frozen, too.
        freeze_exactly: Whether only the layers that the patterns name are frozen, or trained.
        train: Patterns of the names of layers to train; all others are frozen.
        train_head: Whether new heads are trained, and all other layers are frozen.
        unfreeze_at: Epoch, counted from 0, from which frozen layers are trained too; -1 is never.
        epochs: Passes over the data; a recipe with a ``max_iter`` takes precedence.
        batch_size: Images per step, of all processes together; 0 is the train prototxt's, or 32.
        recipe: The update rule and its rates.
        class_weights: Name of a class -> factor on its images' loss; ``balanced`` gives rare classes more.
        lr_mult: Pattern of layer names -> factor on their learning rate.
        device: Chainer's name of a device, such as ``@numpy`` or ``@cupy:0``.
        communicator: ChainerMN's communicator, where several processes train together.
        scale_lr: Whether ``batch_size`` is that of each process, and the learning rate grows with their number.
        scale, mean, crop, resize, mirror, swap: Preprocessing; ``None`` is what the prototxt says.
        embed_preprocessing: Whether ``model.onnx`` takes pictures as they are: 8-bit, N x H x W x C, RGB, of any size.
        workers: Processes that decode pictures; 0 decodes in this process.
        max_bad: Number of unreadable pictures that are skipped; one more is an error.
        cache: Whether to compute the frozen trunk once per image.
        cache_memory: Bytes of features, and of decoded pictures, that are kept in memory; more go to files.
        cache_dir: Folder of the features' files, which runs may share.
        augment_cache: Augmented versions of each image that are cached; 0 caches none.
        trunk_engine: ``chainer``, ``onnxruntime``, or ``auto``, see :func:`bridge.finetuning.trunk.choose`.
        threads: Threads of a matrix product on the CPU. It decides about the last place of values, so it is a
            setting and not the number of cores.
        snapshot_every: Steps between snapshots; 0 saves one as often as it costs little time.
        patience: Epochs after the best one after which the run stops; 0 is never.
        last: Whether the model is that of the last epoch; else that of the best one, by accuracy on held-out images,
            then by their loss.
        half: Whether parameters and blobs are float16, on a GPU.
        resume: Whether to continue the run that is in the folder.
        reading: Arguments of :func:`bridge.load`.
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
    freeze_exactly: bool = False
    train: tuple[str, ...] = ()
    train_head: bool = False
    unfreeze_at: int = -1
    epochs: int = 10
    batch_size: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    class_weights: dict[str, float] | str = ""
    lr_mult: dict[str, float] = field(default_factory=dict)
    device: str = "@numpy"
    communicator: str = ""
    scale_lr: bool = False
    scale: float | None = None
    mean: str | None = None
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    mirror: bool | None = None
    swap: bool = False
    embed_preprocessing: bool = False
    workers: int = 2
    max_bad: int = 0
    cache: bool = True
    cache_memory: int = 1 << 30
    cache_dir: str = ""
    augment_cache: int = 0
    trunk_engine: str = "auto"
    threads: int = 1
    snapshot_every: int = 0
    patience: int = 0
    last: bool = False
    half: bool = False
    resume: bool = False
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output)

    @property
    def selection(self) -> Selection:
        """Which layers are frozen, as the settings say it."""
        return Selection(self.freeze, self.train, self.train_head, self.freeze_exactly)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the settings that may change when a run is resumed."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in data.items() if name not in _FREE}


def check_folder(config: Config) -> None:
    """Check that the run's folder is free or, to resume, holds a run with the same settings.

    Raises:
        UsageError: The folder holds a run and ``resume`` is not set, a run with other settings, or other files.
        FormatError: The settings that it holds cannot be read.
    """
    path, folder = config.folder / SETTINGS, config.folder
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise UsageError("exists and holds no run", where=config.output, hint="name a new folder")
        return
    if not config.resume:
        raise UsageError("holds a run already", where=config.output, hint="--resume continues it")
    try:
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, TypeError) as error:
        raise FormatError(f"does not hold settings: {error}", where=str(path), hint="name a new folder") from None
    now, usual = _flat(config.to_json()), _flat(Config((), "", "").to_json())
    changed = [name for name in now if now[name] != before.get(name, usual[name])]
    if "epochs" in changed and _is_longer(config, before):
        changed.remove("epochs")
    if changed:
        name = changed[0]
        raise UsageError(
            f"the run was started with {_option(name)} {_shown(before.get(name, usual[name]))}, now it is "
            f"{_shown(now[name])}",
            where=config.output,
            hint=f"bridge finetune --resume {config.output} goes on as it was; another setting takes another folder",
        )


_OPTIONS = {
    "files": "the model", "classes": "--class-names", "heads": "--head", "swap": "--swap-channels",
    "recipe.base_lr": "--lr", "recipe.type": "--optimizer", "reading": "other options for reading the model,",
}  # fmt: skip
"""Settings whose options have other names."""


def _option(name: str) -> str:
    """The option that a setting comes from: ``--lr`` for ``recipe.base_lr``."""
    return _OPTIONS.get(name) or f"--{name.removeprefix('recipe.').replace('_', '-')}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "not given"
    return "not given" if value in (None, "", {}) else f"{value:g}" if isinstance(value, float) else str(value)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings in one level: ``recipe.seed`` beside ``batch_size``."""
    flat = dict(settings)
    flat.update((f"recipe.{name}", value) for name, value in flat.pop("recipe", {}).items())
    return flat


def _is_longer(config: Config, before: dict[str, Any]) -> bool:
    """Whether ``epochs`` has grown, and the learning rates of the epochs before are the same."""
    return config.recipe.lr_policy not in ("poly", "cosine") and config.epochs > before["epochs"]


def open_folder(config: Config, lock: RunLock | None = None) -> None:
    """Make the run's folder and write its settings there.

    Args:
        config: The settings.
        lock: Keeps other runs out of the folder; taken now where the folder is new.

    Raises:
        OutputError: The folder or the file cannot be written.
        UsageError: Another run works in the folder.
    """
    path = config.folder / SETTINGS
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=config.output) from None
    if lock is not None and not lock.taken:
        lock.take()
        check_folder(config)  # another run may have come first
    with atomic(path) as file:
        file.write(json.dumps(config.to_json(), indent=2).encode())


def _is_foreign(entry: Path) -> bool:
    """Whether an entry is not one of those that are there before a run's first step."""
    return not entry.name.startswith((".", MAPPED, *LOOKS))
