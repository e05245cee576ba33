"""What a run is asked to do."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import UsageError
from bridge.finetune.recipe import Recipe


@dataclass(frozen=True)
class Config:
    """A run's settings.

    Attributes:
        files: The model, ``[PROTOTXT] WEIGHTS``.
        data: Training data: a folder, an .npz, a list file or ``module:function``.
        output: The run's folder.
        validation: Validation data of the same kinds; else a share of the training data.
        validation_share: That share.
        heads: ``fc8=10``: new heads.
        freeze: Patterns of layers to freeze.
        unfreeze_at: Epoch at which frozen layers start to learn; negative is never.
        epochs: Passes over the data; 0 where the recipe's ``max_iter`` decides.
        batch_size: Images per step.
        recipe: How parameters are updated.
        lr_mult: Pattern -> factor on the learning rate.
        device: Chainer's name of a device, such as ``@numpy`` or ``@cupy:0``.
        scale, mean, crop, resize, mirror, swap: Preprocessing; ``None`` is the prototxt's.
        workers, max_bad: For pictures.
        cache: Whether to compute the frozen trunk once.
        cache_memory: Bytes of features to keep in memory; more go to files.
        cache_dir: Folder of those files.
        augment_cache: Draws per image in the cache; 0 turns it off where images are augmented.
        trunk_engine: ``auto``, ``chainer`` or ``onnxruntime``.
        snapshot_every: Iterations between snapshots; 0 is once per epoch.
        patience: Epochs without a better validation loss after which to stop; 0 is never.
        half: Store arrays as float16 (GPU).
        resume: Go on where the run in the folder stopped.
        reading: Arguments for :func:`bridge.load`.
    """

    files: tuple[str, ...]
    data: str
    output: str
    validation: str = ""
    validation_share: float = 0.1
    heads: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    unfreeze_at: int = -1
    epochs: int = 10
    batch_size: int = 32
    recipe: Recipe = field(default_factory=Recipe)
    lr_mult: dict[str, float] = field(default_factory=dict)
    device: str = "@numpy"
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
        for name in ("resume", "output", "workers", "cache_dir", "cache_memory"):
            del data[name]
        return data


def open_folder(config: Config) -> None:
    """Make the run's folder, or check that it holds this very run.

    Raises:
        UsageError: It is in use by a run and ``resume`` is not set, or by another run.
    """
    path = config.folder / "config.json"
    wanted = config.to_json()
    if path.exists():
        if not config.resume:
            raise UsageError("holds a run already", where=config.output, hint="--resume goes on with it")
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in wanted if wanted[name] != found.get(name)]
        if changed:
            raise UsageError(
                f"was started with {changed[0]} = {found.get(changed[0])!r}, now it is {wanted[changed[0]]!r}",
                where=config.output,
                hint="resume with the same options, or use another folder",
            )
        return
    if config.folder.exists() and (not config.folder.is_dir() or any(config.folder.iterdir())):
        raise UsageError("exists and holds no run", where=config.output, hint="name a new folder")
    from bridge.writers import atomic

    config.folder.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(json.dumps(wanted, indent=2).encode())
