"""A fine-tuning run, from files to products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import bridge
from bridge.chain.build import NetChain, build_chain
from bridge.errors import UsageError
from bridge.finetuning import prepare
from bridge.finetuning.batches import Batches
from bridge.finetuning.config import Config, check_folder, open_folder
from bridge.finetuning.data import Data, Loading, load_data, named, split
from bridge.finetuning.loop import Loop, State
from bridge.finetuning.objective import Judged, Objective, objective_of
from bridge.finetuning.optimizers import Updater, factors_of
from bridge.finetuning.parallel import Ranks, ranks_of
from bridge.finetuning.preprocess import Preprocess, fitted, preprocessing
from bridge.finetuning.stages import Stages
from bridge.finetuning.trunk import is_random
from bridge.layers.data_source import DataSource
from bridge.schema import Net, Shape

Say = Callable[[str], None]


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
        resize: (height, width) that pictures are brought to.
        notes: Remarks for the user, one line each.
        judged: What the validation images are found to be at the end.
    """

    config: Config
    net: Net
    chain: NetChain
    loop: Loop
    train: Data
    validation: Data | None
    preprocess: Preprocess
    resize: tuple[int, int]
    notes: list[str] = field(default_factory=list)
    judged: Judged | None = None


def finetune(
    config: Config,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_note: Say = lambda note: None,
) -> Run:
    """Fine-tune a net and write its products into the run's folder.

    Args:
        config: What to do.
        on_step: Called after every step with its record.
        on_note: Called with each remark as it comes up.

    Raises:
        BridgeError: Whatever hinders the run, in one line; what was reached is kept.
    """
    from bridge.finetuning.products import write_products

    run = begin(config, on_step, on_note)
    loop = run.loop
    loop.run(config.resume)
    arrays = loop.ranks.told(loop.best) if config.use_best else {}
    if arrays:
        loop.trained.fill(arrays)
    run.judged = loop.evaluate(loop.validation) if loop.validation is not None else None
    if loop.ranks.first:
        write_products(run, arrays or loop.trained.copies())
    return run


def begin(config: Config, on_step: Callable[[dict[str, Any]], None] | None, on_note: Say) -> Run:
    """Everything up to the first step."""
    ranks = ranks_of(config.communicator)
    if ranks.first:
        check_folder(config)
    made = training_net(config)
    net, recipe = made.net, config.recipe
    objective = objective_of(net, recipe.label_smoothing)
    shape = net.inputs[objective.data] or ()
    preprocess, resize = preprocessing(config, net, shape, made.source)
    train, validation = _data(config, shape, resize, ranks)
    preprocess = fitted(preprocess, train, shape, config.data)
    labels = _check_labels(net, objective, train, config.data)
    if validation is not None:
        where = config.validation or config.data
        fitted(preprocess, validation, shape, where)
        _check_labels(net, objective, validation, where)
    chain = _chain(config, net, ranks)
    size = -(-_batch_size(config, shape, made.for_training) // ranks.size)
    batches = Batches(train, size, recipe.seed + ranks.rank, ranks.largest(len(train)))
    iterations = recipe.max_iter or -(-config.epochs * batches.per_epoch // recipe.iter_size)
    recipe = dataclasses.replace(recipe, max_iter=iterations)
    factors = factors_of(net, chain, config.lr_mult)
    notes = [*made.notes, *labels, *_remarks(config, preprocess, train, validation)]
    still = [param for param, (lr, _) in factors if not lr]
    stages = Stages(config, net, chain, objective, preprocess, ranks, still, on_note)
    loop = Loop(
        chain=chain,
        updater=Updater(recipe, chain, factors, half=config.half, replay=train.fixed),
        recipe=recipe,
        objective=objective,
        batches=batches,
        stages=stages.all(train, validation, batches),
        iterations=iterations,
        folder=config.folder,
        ranks=ranks,
        random=any(map(is_random, net.layers)),
        half=config.half,
        snapshot_every=config.snapshot_every,
        patience=config.patience,
        on_step=on_step,
        state=State(data=[data.digest() for data in (train, validation) if data is not None] if ranks.first else []),
    )
    for note in notes:
        on_note(note)
    if ranks.first:
        open_folder(config)  # now that nothing stands against the run
    return Run(config, net, chain, loop, train, validation, preprocess, resize, notes)


def _chain(config: Config, net: Net, ranks: Ranks) -> NetChain:
    """What is trained, where it is trained, with the parameters of rank 0."""
    chain = build_chain(net, seed=config.recipe.seed)
    if config.half:
        halve(chain)
    chain.to_device(config.device)
    ranks.share_parameters(chain)
    return chain


def _batch_size(config: Config, shape: Shape, for_training: bool) -> int:
    """Images per step: as asked for, or as in a prototxt that was made for training."""
    told = shape[0] if for_training else 0
    return config.batch_size or (told if told > 1 else 32)


def _remarks(config: Config, preprocess: Preprocess, train: Data, validation: Data | None) -> list[str]:
    """What the data's loading remarked on, what was asked for and comes to nothing, and what is likely forgotten."""
    notes = [*train.notes, *(validation.notes if validation is not None else ())]
    if train.x.dtype == np.uint8 and preprocess.scale == 1 and not preprocess.mean.size:
        notes.append("images go in as numbers from 0 to 255; --mean and --scale, if the net was trained with any")
    if validation is None and not train.fixed and config.validation_share:
        notes.append(
            f"no class has enough images for a validation share of {config.validation_share:g}: none are held out"
        )
    if validation is None and (config.patience or config.use_best):
        notes.append("--patience and --use-best come to nothing without validation data")
    if config.unfreeze_at >= 0 and not config.freeze:
        notes.append("--unfreeze-at comes to nothing without --freeze")
    elif config.unfreeze_at >= config.epochs and not config.recipe.max_iter:
        notes.append(f"--unfreeze-at {config.unfreeze_at} comes after the last of {config.epochs} epochs")
    return notes


def halve(chain: NetChain) -> None:
    """Keep parameters as float16; statistics stay as they are."""
    for param in chain.params():
        param.array = param.array.astype(np.float16)


class Prepared(NamedTuple):
    """A net to train.

    Attributes:
        net: The net, with new heads, new layers, inputs in place of data layers, and a loss.
        source: The data layer that it had, if it had one.
        for_training: Whether its prototxt was made for training, so that its batch size is one to train with.
        notes: Remarks for the user, one line each.
    """

    net: Net
    source: DataSource | None
    for_training: bool
    notes: list[str]


def training_net(config: Config) -> Prepared:
    """The net that the files and heads make.

    Raises:
        BridgeError: The files make no net, a head or a pattern fits no layer, or there is no single place for a loss.
    """
    heads = [prepare.Head.parse(text) for text in config.heads]
    net = bridge.load(*config.files, **{"phase": "TRAIN", **config.reading})
    net, new = prepare.with_new_layers(prepare.with_heads(net, heads))
    source = prepare.data_layer(net)
    for_training = source is not None or any(map(prepare.is_loss, net.layers))
    net = prepare.with_loss(prepare.with_inputs(net, config.crop or config.resize))
    fresh = [*new, *(head.name or head.layer for head in heads)]
    notes = list(net.notes)
    if fresh:
        notes.append(f"new parameters, from their fillers: {', '.join(fresh)}")
        still = [name for name in prepare.matching(net, config.freeze) if name in fresh]
        if still:
            notes.append(f"new parameters are frozen, and stay as their fillers made them: {', '.join(still)}")
    return Prepared(net, source, for_training, notes)


def _data(config: Config, shape: Any, resize: tuple[int, int], ranks: Ranks) -> tuple[Data, Data | None]:
    loading = Loading(
        shape=tuple(shape[1:]),
        resize=resize,
        workers=config.workers,
        max_bad=config.max_bad,
        memory=config.cache_memory,
        folder=config.folder,
        root=config.root,
        share=(ranks.rank, ranks.size),
    )
    data = load_data(config.data, loading)
    held_out = load_data(config.validation, loading, data.classes) if config.validation else None
    for found, where in ((data, config.data), (held_out, config.validation)):
        if found is not None and not len(found):
            raise UsageError("has no images", where=where)
    if config.classes:
        data = named(data, config.classes)
    if held_out is not None:
        return data, held_out
    if data.fixed or not config.validation_share:
        return data, None
    train, held = split(data, config.validation_share, config.recipe.seed)
    if not len(train):
        raise UsageError(f"{len(data)} images leave none to train on", where=config.data)
    return data.take(train, data.notes), data.take(held) if len(held) else None


def _check_labels(net: Net, objective: Objective, data: Data, where: str) -> list[str]:
    """Check that the net has an output for each class; remarks."""
    if objective.scores is None:
        return []
    if data.y.dtype.kind != "i":
        raise UsageError("labels are no whole numbers, and the net tells classes apart", where=where)
    found = np.unique(data.y).tolist()
    low, high = found[0], found[-1]
    wanted = max(high + 1, len(data.classes))
    if low < 0 or wanted > objective.classes:
        raise UsageError(
            f"labels run from {low} to {high}{f' of {wanted} classes' if data.classes else ''}, the net tells "
            f"{objective.classes} classes apart, from 0 to {objective.classes - 1}",
            where=where,
            hint=_remedy(net, objective, found, wanted),
        )
    if wanted < objective.classes:
        return [f"the net tells {objective.classes} classes apart, the data have {wanted}"]
    return []


def _remedy(net: Net, objective: Objective, labels: list[int], wanted: int) -> str:
    """What helps where the labels are not the net's classes."""
    if labels[0] < 0 or (labels[-1] == 255 and 254 not in labels):
        return f"if {labels[0] if labels[0] < 0 else 255} means 'none', leave these images out"
    if labels[0] == 1 and labels[-1] == objective.classes:
        return "count classes from 0"
    heads = [layer.name for layer in net.layers if objective.scores in layer.tops and hasattr(layer, "num_output")]
    return f"--head {heads[-1] if heads else 'LAYER'}={wanted} gives it a new head"
