"""A fine-tuning run, from files to products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import bridge
from bridge.chain.build import NetChain, build_chain
from bridge.chain.functions import chainer
from bridge.errors import ModelError, UsageError
from bridge.finetune import prepare
from bridge.finetune.batches import Batches, Images
from bridge.finetune.config import Config, open_folder
from bridge.finetune.data import Data, Loading, load_data, split
from bridge.finetune.loop import Loop, Objective, Source, Stage
from bridge.finetune.preprocess import Preprocess
from bridge.finetune.recipe import SOLVERS, Recipe
from bridge.finetune.rules import CaffeOptimizer
from bridge.finetune.trunk import Cache, Cut, Trunk, digest, find_cut
from bridge.layers.data_source import Transform
from bridge.schema import Net
from bridge.writers import atomic


@dataclass
class Run:
    """Everything of a run that its report and products need.

    Attributes:
        config: What was asked for.
        net: The net that is trained, as it was before.
        chain: What is trained.
        loop: The loop, after it ran.
        train, validation: The data of the two splits.
        preprocess: How images become inputs.
        notes: Remarks for the user, one line each.
    """

    config: Config
    net: Net
    chain: NetChain
    loop: Loop
    train: Data
    validation: Data | None
    preprocess: Preprocess
    notes: list[str] = field(default_factory=list)


def finetune(
    config: Config,
    on_step: Callable[[dict[str, Any]], None] = lambda record: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Run:
    """Fine-tune a net and write its products into the run's folder.

    Args:
        config: What to do.
        on_step: Called after every step with its record.
        on_note: Called with each remark as it comes up.

    Raises:
        BridgeError: Whatever hinders the run, in one line; what was reached is kept.
    """
    from bridge.finetune.products import write_products

    run = begin(config, on_step, on_note)
    run.loop.run(config.resume)
    write_products(run)
    return run


def begin(
    config: Config, on_step: Callable[[dict[str, Any]], None], on_note: Callable[[str], None]
) -> Run:
    """Everything up to the first step."""
    net, transform, notes = training_net(config)
    data_blob = _data_blob(net)
    scores, label = prepare.scores_and_label(net)
    preprocess, loading = preprocessing(config, net, data_blob, transform)
    train, validation = _data(config, loading)
    _check_classes(net, scores, train)
    open_folder(config)
    chain = build_chain(net, seed=config.recipe.seed)
    chain.to_device(config.device)
    losses = {
        top: weight
        for layer in net.layers
        for top, weight in zip(layer.tops, layer.loss_weights, strict=False)
        if weight
    }
    objective = Objective(data_blob, label, scores, losses, config.recipe.label_smoothing)
    batches = Batches(train, config.batch_size, config.recipe.seed)
    recipe = config.recipe
    iterations = recipe.max_iter or -(-config.epochs * batches.per_epoch // recipe.iter_size)
    recipe = dataclasses.replace(recipe, max_iter=iterations)
    optimizer, set_rate = _optimizer(recipe, net, chain, config)
    run_notes = [*notes, *train.notes]
    stages = _stages(config, net, chain, objective, preprocess, train, validation, batches, run_notes, on_note)
    for note in run_notes:
        on_note(note)
    loop = Loop(
        chain=chain,
        optimizer=optimizer,
        recipe=recipe,
        objective=objective,
        batches=batches,
        stages=stages,
        iterations=iterations,
        folder=config.folder,
        set_rate=set_rate,
        snapshot_every=config.snapshot_every,
        patience=config.patience,
        on_step=on_step,
    )
    return Run(config, net, chain, loop, train, validation, preprocess, run_notes)


def training_net(config: Config) -> tuple[Net, Transform, list[str]]:
    """The net to train, with new heads, new layers and a loss; its data layer's transformation; and remarks."""
    net = bridge.load(*config.files, **{"phase": "TRAIN", **config.reading})
    net = prepare.with_heads(net, map(prepare.Head.parse, config.heads))
    net, new = prepare.with_new_layers(net)
    transform = prepare.transform_of(net)
    net = prepare.with_loss(prepare.with_inputs(net, config.crop or config.resize))
    heads = [prepare.Head.parse(text) for text in config.heads]
    fresh = [*new, *(head.name or head.layer for head in heads)]
    notes = list(net.notes)
    if fresh:
        notes.append(f"new parameters, from their fillers: {', '.join(fresh)}")
    return net, transform, notes


def _data_blob(net: Net) -> str:
    _, label = prepare.scores_and_label(net)
    others = [name for name in net.inputs if name != label]
    if len(others) != 1 or net.inputs[others[0]] is None:
        raise ModelError(
            f"the net's inputs are {', '.join(net.inputs)}, expected images of known shape and labels", where=net.where
        )
    return others[0]


def preprocessing(config: Config, net: Net, data_blob: str, transform: Transform) -> tuple[Preprocess, Loading]:
    """How images become inputs: by the flags, and where they are silent by the prototxt's data layer."""
    shape = net.inputs[data_blob] or ()
    if len(shape) != 4:
        raise ModelError(f"input '{data_blob}' has {len(shape)} axes, expected 4", where=net.where)
    _, channels, height, width = shape
    side = transform.crop_size
    crop = config.crop or ((side, side) if side else None)
    resize = config.resize or (height, width)
    if crop is None and resize != (height, width):
        crop = (height, width)
    preprocess = Preprocess(
        scale=config.scale if config.scale is not None else transform.scale,
        mean=_mean(config.mean, channels) if config.mean else _own_mean(config, net, transform),
        crop=crop if crop != resize else None,
        mirror=config.mirror if config.mirror is not None else transform.mirror,
        swap=config.swap,
    )
    return preprocess, Loading((channels, height, width), resize, config.workers, config.max_bad)


def _own_mean(config: Config, net: Net, transform: Transform) -> np.ndarray:
    """The mean that the prototxt's data layer takes off; a file of it must lie beside the prototxt, or below."""
    if not transform.mean_file:
        return np.asarray(transform.mean_value, np.float32)
    folder = Path(net.sources[0]).resolve().parent
    path = (folder / transform.mean_file).resolve()
    if not path.is_relative_to(folder) or not path.exists():
        raise UsageError(
            f"its mean_file '{transform.mean_file}' is not below {folder}", where=net.where, hint="give it with --mean FILE"
        )
    return _mean(str(path), 0)


def _mean(text: str, channels: int) -> np.ndarray:
    """``104,117,123``, one number, or a .binaryproto."""
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        from bridge.readers import read_mean

        image = np.asarray(read_mean(text).numpy(), np.float32)
        return image.reshape(image.shape[-3:])
    if len(values) not in (1, channels):
        raise UsageError(f"--mean has {len(values)} values, the net's input {channels} channels")
    return values


def _data(config: Config, loading: Loading) -> tuple[Data, Data | None]:
    data = load_data(config.data, loading)
    if not len(data):
        raise UsageError("has no images", where=config.data)
    if config.validation:
        return data, load_data(config.validation, loading, data.classes)
    if data.fixed or not config.validation_share:
        return data, None
    train, held = split(data, config.validation_share, config.recipe.seed)
    if not len(train):
        raise UsageError(f"{len(data)} images leave none to train on", where=config.data)
    kept = dataclasses.replace(data.take(train), notes=data.notes)
    return kept, data.take(held) if len(held) else None


def _check_classes(net: Net, scores: str, data: Data) -> None:
    final = {top: shape for layer, tops in zip(net.layers, net.infer(), strict=True) for top, shape in zip(layer.tops, tops, strict=False)}
    classes, highest = final[scores][1], int(data.y.max())
    if highest >= classes or int(data.y.min()) < 0:
        raise UsageError(
            f"labels run from {int(data.y.min())} to {highest}, the net tells {classes} classes apart",
            where=net.where,
            hint=f"--head LAYER={max(highest + 1, len(data.classes))} gives it a new head",
        )


def _optimizer(recipe: Recipe, net: Net, chain: NetChain, config: Config) -> tuple[Any, Callable[[float], None]]:
    """The optimizer, set up, with each parameter's own factors; and how to tell it the rate."""
    mults = prepare.multipliers(net, config.lr_mult)
    if recipe.type in SOLVERS:
        optimizer = CaffeOptimizer(recipe).setup(chain)
        for param, (lr, decay) in _by_param(net, chain, mults):
            param.update_rule.lr_mult, param.update_rule.decay_mult = lr, decay
        return optimizer, lambda rate: None  # it follows the recipe by itself
    maker = getattr(chainer.optimizers, recipe.type, None)
    if maker is None or not isinstance(maker, type):
        raise UsageError(f"no optimizer '{recipe.type}'", hint=f"Caffe's: {', '.join(SOLVERS)}; or one of Chainer's")
    optimizer = maker().setup(chain)
    pairs = _by_param(net, chain, mults)
    for param, (_, decay) in pairs:
        if recipe.weight_decay and decay:
            param.update_rule.add_hook(chainer.optimizer_hooks.WeightDecay(recipe.weight_decay * decay))
    if recipe.clip_gradients > 0:
        optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(recipe.clip_gradients))

    def set_rate(rate: float) -> None:
        for param, (lr, _) in pairs:
            hyperparam = param.update_rule.hyperparam
            for name in ("alpha", "lr"):
                if hasattr(hyperparam, name):
                    setattr(hyperparam, name, rate * lr)
                    break

    return optimizer, set_rate


def _by_param(
    net: Net, chain: NetChain, mults: dict[tuple[str, int], tuple[float, float]]
) -> list[tuple[Any, tuple[float, float]]]:
    """Each parameter once, with its factors; a shared one has those of its first owner."""
    found: dict[int, tuple[Any, tuple[float, float]]] = {}
    for index, layer in enumerate(net.layers):
        for place, role in enumerate(chain.roles(index)):
            param = chain.array(index, role)
            if isinstance(param, chainer.Parameter):
                found.setdefault(id(param), (param, mults.get((layer.name, place), (1.0, 1.0))))
    return list(found.values())


def _stages(
    config: Config,
    net: Net,
    chain: NetChain,
    objective: Objective,
    preprocess: Preprocess,
    train: Data,
    validation: Data | None,
    batches: Batches,
    notes: list[str],
    on_note: Callable[[str], None],
) -> list[Stage]:
    """The run's stages: with the frozen layers, and from ``unfreeze_at`` on without."""
    frozen = tuple(prepare.matching(net, config.freeze))
    seed = config.recipe.seed
    splits = [Images(train, preprocess, seed, train=True)]
    if validation is not None:
        splits.append(Images(validation, preprocess, seed, train=False))

    def prepared(frozen: tuple[str, ...]) -> Callable[[], tuple[Cut | None, Source, Source | None]]:
        def prepare_stage() -> tuple[Cut | None, Source, Source | None]:
            cut = find_cut(net, objective.data, _trained(net, chain, frozen), frozen)
            made = _sources(config, net, chain, objective, cut, splits, [train, validation], preprocess, on_note)
            return cut, made[0], made[1] if len(made) > 1 else None

        return prepare_stage

    stages = [Stage(0, frozen, prepared(frozen))]
    if frozen and config.unfreeze_at >= 0:
        start = -(-config.unfreeze_at * batches.per_epoch // config.recipe.iter_size)
        if start == 0:
            return [Stage(0, (), prepared(()))]
        stages.append(Stage(start, (), prepared(())))
    return stages


def _trained(net: Net, chain: NetChain, frozen: tuple[str, ...]) -> list[str]:
    """Layers with a parameter that moves: not frozen, and with a rate above 0."""
    moving = []
    for index, layer in enumerate(net.layers):
        if layer.name in frozen:
            continue
        roles = chain.roles(index)
        trained = [r for place, r in enumerate(roles) if isinstance(chain.array(index, r), chainer.Parameter) and layer.param(place).lr_mult]
        if trained:
            moving.append(layer.name)
    if not moving:
        raise UsageError("every layer is frozen: there is nothing to train", where=net.where)
    return moving


_ENGINE = "trunk_engine.txt"


def _trunk_engine(config: Config) -> str:
    """The engine asked for, or the one that this run chose when it began: another would change its bits."""
    chosen = config.folder / _ENGINE
    return chosen.read_text() if config.trunk_engine == "auto" and chosen.exists() else config.trunk_engine


def _sources(
    config: Config,
    net: Net,
    chain: NetChain,
    objective: Objective,
    cut: Cut | None,
    splits: list[Images],
    data: list[Data | None],
    preprocess: Preprocess,
    on_note: Callable[[str], None],
) -> list[Source]:
    """Where each split's inputs come from: images, the trunk, or its cache."""
    if cut is None:
        return [Source(images, objective) for images in splits]
    sample = splits[0].get(np.arange(1), 0)[:8]
    trunk = Trunk(net, chain, cut, objective.data, _trunk_engine(config), sample)
    on_note(trunk.note or f"trunk of {cut.index} layers in {trunk.engine}")
    with atomic(config.folder / _ENGINE) as file:
        file.write(trunk.engine.encode())
    made = []
    for images, source_data in zip(splits, data, strict=False):
        draws = config.augment_cache if images.augmented else 1
        if not config.cache or draws < 1 or source_data is None or source_data.fixed:
            made.append(Source(images, objective, trunk))
            continue
        key = digest(net, cut, repr(preprocess.to_json()), source_data.digest(), repr((draws, config.recipe.seed if images.augmented else 0, trunk.engine)))
        folder = Path(config.cache_dir) if config.cache_dir else config.folder / "cache"
        cache = Cache(folder, key, cut.blobs, len(images) * draws, config.cache_memory)
        if not cache.load():
            cache.fill(trunk(x) for x in images.chunks(64, draws))
        how = "reused" if cache.reused else "computed"
        on_note(f"features of {len(images)} images, {draws} draw{'s' * (draws > 1)} each: {how}, in {cache.place}")
        made.append(Source(images, objective, trunk, cache, draws))
    if splits[0].augmented and config.cache and config.augment_cache < 1:
        on_note("images are augmented, so the trunk is not cached; --augment-cache K keeps K draws of each")
    return made


