"""The stages of a run: what is frozen, and where images enter the part that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridge import engines
from bridge.chain.build import NetChain
from bridge.chain.freezing import freeze, is_frozen, thaw
from bridge.chain.functions import chainer
from bridge.errors import UsageError
from bridge.files.atomic import atomic
from bridge.finetuning import prepare
from bridge.finetuning.batches import Batches, Images
from bridge.finetuning.cache import Cache, digest
from bridge.finetuning.config import Config
from bridge.finetuning.data import Data
from bridge.finetuning.loop import Stage
from bridge.finetuning.objective import Objective
from bridge.finetuning.parallel import Ranks
from bridge.finetuning.preprocess import Preprocess
from bridge.finetuning.sources import Source
from bridge.finetuning.trunk import Cut, Trunk, find_cut, is_random
from bridge.schema import Net

_ENGINE = "trunk_engine.txt"
Split = tuple[Images, Data]


@dataclass
class Stages:
    """Makes the stages of a run.

    Attributes:
        config: What was asked for.
        net: The net that is trained.
        chain: Its chain.
        objective: Says what the inputs are called.
        preprocess: How images become inputs.
        ranks: The processes that train together.
        still: Parameters with a learning rate of 0.
        say: Called with remarks.
    """

    config: Config
    net: Net
    chain: NetChain
    objective: Objective
    preprocess: Preprocess
    ranks: Ranks
    still: list[Any]
    say: Callable[[str], None]

    def all(self, train: Data, validation: Data | None, batches: Batches) -> list[Stage]:
        """The stages in order: with the frozen layers, and from ``unfreeze_at`` on without."""
        frozen, config = tuple(prepare.matching(self.net, self.config.freeze)), self.config
        splits = [(Images(train, self.preprocess, config.recipe.seed, train=True), train)]
        if validation is not None:
            splits.append((Images(validation, self.preprocess, config.recipe.seed, train=False), validation))
        start = -(-config.unfreeze_at * batches.per_epoch // config.recipe.iter_size)
        if not frozen or start == 0:
            return [self._stage(0, (), splits)]
        return [self._stage(0, frozen, splits), *([self._stage(start, (), splits)] if start > 0 else [])]

    def _stage(self, start: int, frozen: tuple[str, ...], splits: list[Split]) -> Stage:
        def prepared() -> tuple[Cut | None, Source, Source | None]:
            cut = find_cut(self.net, self.objective.data, self._moving(), frozen)
            made = self._sources(cut, splits)
            self._tell(cut, frozen)
            return cut, made[0], made[1] if len(made) > 1 else None

        return Stage(start, lambda: self._freeze(frozen), prepared)

    def _freeze(self, frozen: tuple[str, ...]) -> None:
        thaw(self.chain, "*")
        paths = {id(param): path[1:] for path, param in self.chain.namedparams()}
        names = [*frozen, *(paths[id(param)] for param in self.still)]
        if names:
            freeze(self.chain, *names)
        if not self._moving():
            raise UsageError("every layer is frozen: there is nothing to train", where=self.net.where)

    def _moving(self) -> list[str]:
        """Layers with a parameter that is trained."""
        return [
            layer.name
            for index, layer in enumerate(self.net.layers)
            if any(_is_trained(self.chain.array(index, role)) for role in self.chain.roles(index))
        ]

    def _tell(self, cut: Cut | None, frozen: tuple[str, ...]) -> None:
        """Say what keeps frozen layers from being computed once."""
        below = cut.index if cut else 0
        late = [layer.name for layer in self.net.layers[below:] if layer.name in frozen]
        random = next((layer for layer in self.net.layers[below:] if is_random(layer)), None)
        if late and random is not None and self.config.cache:
            which = f"{late[0]}' to '{late[-1]}" if len(late) > 1 else late[0]
            self.say(f"frozen layers '{which}' are computed in every step, for '{random.name}' below them is random")

    # -- the trunk and its cache -----------------------------------------------------------------

    def _sources(self, cut: Cut | None, splits: list[Split]) -> list[Source]:
        """Where each split's inputs come from: images, the trunk, or its cache."""
        if cut is None:
            return [Source(images, self.objective) for images, _ in splits]
        key = self._trunk_key(cut)
        engine = self.ranks.told(self._engine(key, splits))
        sample = splits[0][0].get(np.arange(min(4, len(splits[0][0]))), 0)[:4]
        trunk = Trunk(self.net, self.chain, cut, self.objective.data, engine, sample)
        self.say(trunk.note)
        if self.ranks.first:
            with atomic(self.config.folder / _ENGINE) as file:
                file.write(trunk.engine.encode())
        return [self._source(images, data, trunk, key) for images, data in splits]

    def _source(self, images: Images, data: Data, trunk: Trunk, key: str) -> Source:
        draws = self._draws(images, data)
        if not draws:
            return Source(images, self.objective, trunk)
        cache = self._cache(images, data, draws, trunk.engine, key)
        if not cache.load():
            cache.fill(trunk.to_host(x) for x in images.chunks(64, draws))
        how = "reused" if cache.reused else "computed"
        each = f", {draws} draw{'s' * (draws > 1)} each" if images.augmented else ""
        self.say(f"features of {len(images)} images{each}: {how}, in {cache.place}")
        return Source(images, self.objective, trunk, cache, draws)

    def _draws(self, images: Images, data: Data) -> int:
        """How many draws of each image the cache has; 0 where there is none."""
        if not self.config.cache or data.fixed:
            return 0
        if images.augmented and not self.config.augment_cache:
            self.say("images are augmented, so the trunk is not cached; --augment-cache K keeps K draws of each")
        return self.config.augment_cache if images.augmented else 1

    def _cache(self, images: Images, data: Data, draws: int, engine: str, key: str) -> Cache:
        seed = self.config.recipe.seed if images.augmented else 0
        own = digest(key, repr(self.preprocess.to_json()), data.digest(), images.augmented, draws, seed, engine)
        folder = Path(self.config.cache_dir) if self.config.cache_dir else _cache_home()
        return Cache(folder, own, len(images) * draws, self.config.cache_memory, keep=bool(self.config.cache_dir))

    def _trunk_key(self, cut: Cut) -> str:
        """A digest of all that the trunk computes with."""
        layers = self.net.layers[: cut.index]
        arrays = [
            np.asarray(chainer.backends.cuda.to_cpu(getattr(array, "array", array)))
            for index, layer in enumerate(layers)
            for array in (self.chain.array(index, role) for role in self.chain.roles(index))
        ]
        return digest([(layer.type, layer.bottoms, layer.tops, layer.definition) for layer in layers], cut, *arrays)

    def _engine(self, key: str, splits: list[Split]) -> str:
        """The engine asked for; else the one that this run began with, or that has filled a cache, for its bits."""
        chosen = self.config.folder / _ENGINE
        if self.config.trunk_engine != "auto":
            return self.config.trunk_engine
        if self.config.resume and chosen.exists():
            return chosen.read_text(encoding="utf-8")
        images, data = splits[0]
        if data.fixed:
            return "chainer"  # a replay has the bits of Caffe, which only the chain has
        draws = 0 if not self.config.cache else self.config.augment_cache if images.augmented else 1
        both = ("onnxruntime", "chainer") if draws else ()
        known = [name for name in both if self._cache(images, data, draws, name, key).load()]
        return known[0] if known and engines.missing(known[0]) is None else "auto"


def _is_trained(array: Any) -> bool:
    return isinstance(array, chainer.Parameter) and not is_frozen(array)


def _cache_home() -> Path:
    """Where features go that do not fit into memory: the user's folder for caches."""
    import platformdirs

    return platformdirs.user_cache_path("weight-bridge", appauthor=False) / "features"
