"""The stages of a run: which layers are frozen, and where images enter the trained part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.devices import to_host
from bridge.chain.freezing import freeze, is_frozen, thaw
from bridge.chain.functions import chainer
from bridge.errors import UsageError
from bridge.finetuning.batches import Images
from bridge.finetuning.cache import Cache, digest
from bridge.finetuning.cut import Cut
from bridge.finetuning.data import Data
from bridge.finetuning.listener import Listener
from bridge.finetuning.parallel import features_of_all
from bridge.finetuning.sources import Source
from bridge.finetuning.trunk import Choice, Trunk, software
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.finetuning.plan import Plan

_FEATURES = "computing features of the trunk"
_CHUNK = 16
"""Images whose features are computed before the next sign of life."""


@dataclass(frozen=True)
class Stage:
    """A part of the run with one set of frozen layers.

    Attributes:
        start: Its first step.
        frozen: Names of the frozen layers.
        trained: Names of the layers with a parameter that is trained.
        cut: Where the trunk ends; ``None`` where there is no trunk.
        trunk: The trunk's engine; ``None`` where there is no trunk.
    """

    start: int
    frozen: tuple[str, ...]
    trained: tuple[str, ...]
    cut: Cut | None
    trunk: Choice | None


@dataclass(frozen=True)
class Inputs:
    """The images of a stage on their way into the trained part.

    Attributes:
        train: Training images.
        validation: Validation images, if there are any.
    """

    train: Source
    validation: Source | None


def freeze_layers(net: Net, chain: NetChain, frozen: Sequence[str], still: Sequence[Any]) -> tuple[str, ...]:
    """Freeze these layers of the chain and no others.

    Args:
        net: The net.
        chain: Its chain.
        frozen: Names of the layers.
        still: Parameters with a learning rate of 0, which are frozen too.

    Returns:
        Names of the layers with a parameter that is trained.

    Raises:
        UsageError: No parameter is left to train.
    """
    thaw(chain, "*")
    paths = {id(param): path[1:] for path, param in chain.namedparams()}
    names = [*frozen, *(paths[id(param)] for param in still)]
    if names:
        freeze(chain, *names)
    trained = tuple(
        layer.name
        for index, layer in enumerate(net.layers)
        if any(_is_trained(chain.array(index, role)) for role in chain.roles(index))
    )
    if not trained:
        hint = "--head LAYER=5 gives a layer new outputs, which are trained; or freeze fewer layers"
        raise UsageError("every layer is frozen: there is nothing to train", where=net.where, hint=hint)
    return trained


def _is_trained(array: Any) -> bool:
    return isinstance(array, chainer.Parameter) and not is_frozen(array)


def open_stage(plan: Plan, chain: NetChain, stage: Stage, listener: Listener) -> Inputs:
    """Begin a stage: freeze its layers, and compute the cache of its trunk.

    Args:
        plan: The plan that the stage is part of.
        chain: What is trained.
        stage: The stage.
        listener: Is told remarks, and how far the cache is.

    Raises:
        OutputError: The cache does not fit the disk.
    """
    freeze_layers(plan.net, chain, stage.frozen, plan.still)
    feeder = _Feeder(plan, chain, stage, listener)
    train = feeder.source(plan.train, augmented=True)
    validation = feeder.source(plan.validation, augmented=False) if plan.validation is not None else None
    feeder.warn_of_random_layers()
    return Inputs(train, validation)


class _Feeder:
    """Makes the sources of a stage."""

    def __init__(self, plan: Plan, chain: NetChain, stage: Stage, listener: Listener) -> None:
        self._plan, self._config, self._chain, self._stage = plan, plan.config, chain, stage
        self._say, self._work = listener.note, listener.work
        self._trunk: Trunk | None = None
        if stage.cut is not None and stage.trunk is not None:
            self._trunk = Trunk(chain, stage.cut, plan.objective.data, stage.trunk.onnx)
            if listener.plan is None:  # else the plan said it
                self._say(stage.trunk.note)

    def source(self, data: Data, *, augmented: bool) -> Source:
        """The images of a split: as they are, through the trunk, or from its cache."""
        images = self._plan.images(data, augmented=augmented)
        draws = self._draws(images, data)
        if self._trunk is None or not draws:
            return Source(images, self._plan.objective, self._trunk)
        cache = self._cache(images, data, draws)
        if not all(self._plan.ranks.exchanged(cache.load())):
            self._fill(cache, self._trunk, images, draws)
        how = "reused" if cache.reused else "computed"
        each = f", {draws} draw{'s' * (draws > 1)} each" if images.augmented else ""
        self._say(f"features of {len(images)} images{each}: {how}, in {cache.place}")
        return Source(images, self._plan.objective, self._trunk, cache, draws)

    def _fill(self, cache: Cache, trunk: Trunk, images: Images, draws: int) -> None:
        """Compute the features, each rank a part of them; the first rank of a machine writes those that go to files."""
        ranks = self._plan.ranks
        parts = images.chunks(_CHUNK if trunk.alone else 4 * _CHUNK, draws)
        found = features_of_all(ranks, parts, lambda part: trunk.to_host(images.get(*part)))
        told = self._told(found, len(images) * draws)
        cache.fill(told, writes=not ranks.local_rank, wait=lambda: ranks.exchanged(None))

    def _told(self, parts: Iterable[Mapping[str, np.ndarray]], total: int) -> Iterator[Mapping[str, np.ndarray]]:
        """The same, and the listener is told how many images are done."""
        done = 0
        self._work(_FEATURES, done, total)
        for part in parts:
            yield part
            done += len(next(iter(part.values())))
            self._work(_FEATURES, done, total)

    def _draws(self, images: Images, data: Data) -> int:
        """Augmented versions of each image in the cache; 0 for no cache."""
        if self._trunk is None or not self._config.cache or data.fixed:
            return 0
        if images.augmented and not self._config.augment_cache:
            self._say("images are augmented, so the trunk is not cached; --augment-cache K keeps K draws of each")
        return self._config.augment_cache if images.augmented else 1

    def _cache(self, images: Images, data: Data, draws: int) -> Cache:
        config, engine = self._config, self._stage.trunk.engine if self._stage.trunk else ""
        seed = config.recipe.seed if images.augmented else 0
        preprocess = repr(self._plan.preprocess.to_json())
        computed = (software(engine), config.threads, self._chain.device.name)
        own = digest(self._trunk_key(), preprocess, data.digest(), images.augmented, draws, seed, computed)
        folder = Path(config.cache_dir) if config.cache_dir else _cache_home()
        return Cache(folder, own, len(images) * draws, config.cache_memory, keep=bool(config.cache_dir))

    def _trunk_key(self) -> str:
        """A digest of the trunk's layers, their parameters and their values."""
        cut = self._stage.cut
        layers = self._plan.net.layers[: cut.index if cut else 0]
        arrays = [
            to_host(getattr(array, "array", array))
            for index, layer in enumerate(layers)
            for array in (self._chain.array(index, role) for role in self._chain.roles(index))
        ]
        return digest([(layer.type, layer.bottoms, layer.tops, layer.definition) for layer in layers], cut, *arrays)

    def warn_of_random_layers(self) -> None:
        """Say which frozen layers are computed in every step because a layer before them is random."""
        below = self._stage.cut.index if self._stage.cut else 0
        later = self._plan.net.layers[below:]
        late = [layer.name for layer in later if layer.name in self._stage.frozen]
        random = next((layer for layer in later if layer.draws_random), None)
        if late and random is not None and self._config.cache:
            which = f"{late[0]}' to '{late[-1]}" if len(late) > 1 else late[0]
            self._say(f"frozen layers '{which}' are computed in every step, for '{random.name}' below them is random")


def _cache_home() -> Path:
    """Where features go that do not fit into memory: the user's folder for caches."""
    import platformdirs

    return platformdirs.user_cache_path("weight-bridge", appauthor=False) / "features"
