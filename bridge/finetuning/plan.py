"""The plan of a run: everything that is decided before its first step."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bridge.chain.build import NetChain, build_chain
from bridge.errors import MissingExtraError, UsageError
from bridge.finetuning import blas, datasets, prepare, snapshot
from bridge.finetuning.batches import Batches, Images
from bridge.finetuning.class_weights import class_weights
from bridge.finetuning.config import Config
from bridge.finetuning.cut import find_cut
from bridge.finetuning.data import Data
from bridge.finetuning.listener import Work, silent
from bridge.finetuning.material import Material
from bridge.finetuning.objective import Objective, objective_of
from bridge.finetuning.optimizers import Factors, factors_of
from bridge.finetuning.parallel import Ranks, ranks_of
from bridge.finetuning.preprocess import ImageTransform, fitted, preprocessing
from bridge.finetuning.recipe import Recipe
from bridge.finetuning.selection import some
from bridge.finetuning.snapshot import State
from bridge.finetuning.stages import Stage, freeze_layers
from bridge.finetuning.trunk import TRUNK_ENGINES, choose, software
from bridge.schema import Net

_SAMPLE = 4
"""Images on which the engines of the trunk are compared."""


@dataclass(frozen=True)
class Plan:
    """What a run does, in full.

    A run's numbers follow from its plan: no clock, load, number of cores or order of hashes takes part.

    Attributes:
        config: The settings.
        recipe: The update rule and its rates, with the number of steps as ``max_iter``.
        net: The net that is trained, as it was before.
        objective: Its loss and class scores.
        preprocess: How images become inputs.
        resize: (height, width) that pictures are brought to.
        train: The training data.
        validation: The validation data, if there are any.
        batches: Which images each step takes.
        stages: In order of their first steps, the first at 0.
        factors: Each parameter of the chain with its factors on the learning rate and the weight decay.
        ranks: The processes that train together.
        notes: Remarks for the user, one line each.
        recorded: The state of the snapshot that the run continues from, if there is one.
    """

    config: Config
    recipe: Recipe
    net: Net
    objective: Objective
    preprocess: ImageTransform
    resize: tuple[int, int]
    train: Data
    validation: Data | None
    batches: Batches
    stages: tuple[Stage, ...]
    factors: list[tuple[Any, Factors]]
    ranks: Ranks
    notes: tuple[str, ...]
    recorded: State | None

    @property
    def iterations(self) -> int:
        """The number of steps."""
        return self.recipe.max_iter

    @property
    def epochs(self) -> int:
        """The number of passes over the data; the last one may be cut short."""
        return -(-self.iterations * self.recipe.iter_size // self.batches.per_epoch)

    @property
    def images_per_step(self) -> int:
        """Images of all processes that make one update."""
        return self.batches.size * self.recipe.iter_size

    @functools.cached_property
    def random(self) -> bool:
        """Whether the net draws random numbers in training."""
        return any(layer.draws_random for layer in self.net.layers)

    @property
    def still(self) -> list[Any]:
        """The parameters with a learning rate of 0."""
        return [param for param, (rate, _) in self.factors if not rate]

    def images(self, data: Data, *, augmented: bool) -> Images:
        """Preprocessed images of a split; augmented ones in training only."""
        return Images(data, self.preprocess, self.recipe.seed, train=augmented)

    def fresh_state(self) -> State:
        """The state before the first step."""
        return State(
            data=_digests(self.train, self.validation),
            engines=[stage.trunk.engine if stage.trunk else "" for stage in self.stages],
            software=_software(self.stages),
            ranks=self.ranks.size,
        )

    def __str__(self) -> str:
        """The plan for people, a line per fact."""
        classes = f", {self.objective.classes} classes" if self.objective.scores else ""
        lines = [
            f"net: {self.net.name or self.net.where}, {len(self.net)} layers, loss {', '.join(self.objective.losses)}",
            f"data: {len(self.train)} images to train on, {len(self.validation or ())} held out{classes}",
            f"steps: {self.iterations} of {self.images_per_step} images, {self.epochs} epochs",
        ]
        for stage in self.stages:
            if stage.start:
                lines.append(f"from step {stage.start + 1} on:")
            lines += [f"frozen: {some(stage.frozen) or 'nothing'}", f"trained: {some(stage.trained)}"]
            trunk = stage.trunk.note if stage.trunk is not None else "no trunk: all layers are computed in every step"
            lines.append(trunk)
        return "\n".join(lines)


def make_plan(config: Config, work: Work = silent, material: Material | None = None) -> tuple[Plan, NetChain]:
    """Decide everything about a run, and build the chain that it trains.

    Nothing is written, but for files of decoded pictures that do not fit into memory.

    Args:
        config: The settings.
        work: Is told how far decoding pictures is.
        material: A net and data in memory, in place of those that the settings name.

    Raises:
        BridgeError: Whatever keeps the run from being started, in one line.
    """
    ranks = ranks_of(config.communicator)
    recorded = ranks.broadcast(snapshot.read_state(config.folder / snapshot.SNAPSHOT_FILE) if config.resume else None)
    material = material or Material()
    made = prepare.prepared(config, material.net)
    net, objective = made.net, objective_of(made.net, config.recipe.label_smoothing, config.half)
    fed = _feed(config, made, objective, ranks, work, material)
    objective = dataclasses.replace(objective, weights=class_weights(config, net, objective, fed.train))
    chain = _chain(config, net, ranks)
    chain.exact = fed.train.fixed  # a replay of a Caffe run
    batches = _batches(config, made, objective, fed.train, ranks)
    iterations = config.recipe.max_iter or -(-config.epochs * batches.per_epoch // config.recipe.iter_size)
    plan = Plan(
        config=config,
        recipe=dataclasses.replace(_paced(config, ranks), max_iter=iterations),
        net=net,
        objective=objective,
        preprocess=fed.preprocess,
        resize=fed.resize,
        train=fed.train,
        validation=fed.validation,
        batches=batches,
        stages=(),
        factors=factors_of(net, chain, config.lr_mult),
        ranks=ranks,
        notes=(*made.notes, *fed.notes),
        recorded=recorded,
    )
    if ranks.first and recorded is not None:
        _check_resumed(plan, recorded)
    plan = dataclasses.replace(plan, stages=_stages(plan, chain, made.frozen))
    return dataclasses.replace(plan, notes=(*plan.notes, *_changes(plan))), chain


def _paced(config: Config, ranks: Ranks) -> Recipe:
    """The recipe; with ``scale_lr`` its rate grows with the batch. Source: arXiv:1706.02677, section 2.1."""
    factor = ranks.size if config.scale_lr else 1
    return dataclasses.replace(config.recipe, base_lr=config.recipe.base_lr * factor)


class _Feed(NamedTuple):
    """The data of a run, and how images become inputs."""

    preprocess: ImageTransform
    resize: tuple[int, int]
    train: Data
    validation: Data | None
    notes: list[str]


def _feed(
    config: Config, made: prepare.Prepared, objective: Objective, ranks: Ranks, work: Work, material: Material
) -> _Feed:
    """Load the data, and check that they fit the net."""
    shape = made.net.inputs[objective.data] or ()
    preprocess, resize = preprocessing(config, made.net, shape, made.source)
    train, validation = datasets.load_splits(config, shape, resize, ranks, work, material)
    preprocess = fitted(preprocess, train, shape, config.data)
    notes = datasets.check_labels(made.net, objective, train, config.data)
    if validation is not None:
        where = config.validation or config.data
        fitted(preprocess, validation, shape, where)
        datasets.check_labels(made.net, objective, validation, where)
    return _Feed(preprocess, resize, train, validation, [*notes, *_remarks(config, preprocess, train, validation)])


def _batches(config: Config, made: prepare.Prepared, objective: Objective, train: Data, ranks: Ranks) -> Batches:
    """Batches of the size of the settings, of a prototxt made for training, or of 32."""
    shape = made.net.inputs[objective.data] or ()
    own = shape[0] if made.for_training else 0
    size = config.batch_size or (own if own > 1 else 32)
    return Batches(train, size * ranks.size if config.scale_lr else size, config.recipe.seed)


def _chain(config: Config, net: Net, ranks: Ranks) -> NetChain:
    """The chain on its device, with the parameters of rank 0."""
    chain = build_chain(net, seed=config.recipe.seed)
    if config.half:  # statistics stay as they are
        for param in chain.params():
            param.array = param.array.astype(np.float16)
    chain.to_device(config.device)
    ranks.share_parameters(chain)
    return chain


# -- stages ---------------------------------------------------------------------------------------


def _stages(plan: Plan, chain: NetChain, frozen: tuple[str, ...]) -> tuple[Stage, ...]:
    """With the frozen layers, and from ``unfreeze_at`` on without."""
    config = plan.config
    start = -(-config.unfreeze_at * plan.batches.per_epoch // plan.recipe.iter_size)
    if not frozen or start == 0:
        parts: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    else:
        parts = [(0, frozen), *([(start, ())] if start > 0 else [])]
    return tuple(_stage(plan, chain, number, start, names) for number, (start, names) in enumerate(parts))


def _stage(plan: Plan, chain: NetChain, number: int, start: int, frozen: tuple[str, ...]) -> Stage:
    trained = freeze_layers(plan.net, chain, frozen, plan.still)
    cut = find_cut(plan.net, plan.objective.data, trained, frozen)
    if cut is None:
        return Stage(start, frozen, trained, None, None)
    sample = plan.images(plan.train, augmented=True).get(np.arange(min(_SAMPLE, len(plan.train))), 0)[:_SAMPLE]
    wish = plan.ranks.broadcast(_wish(plan, number))
    choice = choose(plan.net, chain, cut, plan.objective.data, wish, sample)
    if plan.ranks.broadcast(choice.engine) != choice.engine:  # the ranks have other images: rank 0 decides
        choice = choose(plan.net, chain, cut, plan.objective.data, plan.ranks.broadcast(choice.engine), sample)
    return Stage(start, frozen, trained, cut, choice)


def _wish(plan: Plan, stage: int) -> str:
    """The engine asked for; else that of the snapshot; else Chainer for a replay, which has Caffe's bits there."""
    if plan.config.trunk_engine != "auto":
        return plan.config.trunk_engine
    recorded = plan.recorded.engines[stage : stage + 1] if plan.recorded is not None else []
    if recorded and recorded[0] in TRUNK_ENGINES:
        return recorded[0]
    return "chainer" if plan.train.fixed else "auto"


def _software(stages: tuple[Stage, ...]) -> list[str]:
    """All that computes in the run, with versions."""
    used = ["chainer", *(stage.trunk.engine for stage in stages if stage.trunk is not None)]
    return [software(engine) for engine in dict.fromkeys(used)]


# -- resuming ------------------------------------------------------------------------------------


def _digests(train: Data, validation: Data | None) -> list[str]:
    return [data.digest() for data in (train, validation) if data is not None]


def _check_resumed(plan: Plan, recorded: State) -> None:
    """Check that a run is continued with the data, the batches and the engines that it began with."""
    where = str(plan.config.folder)
    if recorded.data != _digests(plan.train, plan.validation):
        raise UsageError("the data are not those that the run began with", where=where, hint="name a new folder")
    if plan.config.scale_lr and recorded.ranks != plan.ranks.size:
        raise UsageError(
            f"the run began with {recorded.ranks} processes, found {plan.ranks.size}; with --scale-lr their number "
            "decides about batches and learning rate",
            where=where,
            hint=f"mpiexec -n {recorded.ranks}, or name a new folder",
        )
    from bridge import engines

    problem = engines.missing("onnxruntime")
    if problem is not None and "onnxruntime" in recorded.engines and plan.config.trunk_engine == "auto":
        raise MissingExtraError(
            "the run began with its trunk in onnxruntime, which is not installed here", where=where, hint=problem.hint
        )


def _changes(plan: Plan) -> list[str]:
    """Remarks where a run is continued with other software or another number of processes, which round otherwise."""
    if plan.recorded is None:
        return []
    pairs = [("; ".join(plan.recorded.software) or "unknown software", "; ".join(_software(plan.stages)))]
    pairs.append((_processes(plan.recorded.ranks), _processes(plan.ranks.size)))
    return [
        f"the run began with {before}; now it is {now}: values may differ in the last place"
        for before, now in pairs
        if before != now
    ]


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number > 1)}"


# -- remarks -------------------------------------------------------------------------------------


def _remarks(config: Config, preprocess: ImageTransform, train: Data, validation: Data | None) -> list[str]:
    """Remarks on loading the data, on settings without effect, and on what was probably forgotten."""
    notes = [*train.notes, *(validation.notes if validation is not None else ())]
    if train.x.dtype == np.uint8 and preprocess.scale == 1 and not preprocess.mean.size:
        notes.append("images go in as numbers from 0 to 255; --mean and --scale, if the net was trained with any")
    if validation is None and not train.fixed and config.validation_share:
        notes.append(
            f"no class has enough images for a validation share of {config.validation_share:g}: none are held out"
        )
    if validation is None and config.patience:
        notes.append("--patience has no effect without validation data")
    if config.unfreeze_at >= 0 and not config.selection:
        notes.append("--unfreeze-at has no effect where nothing is frozen")
    elif config.unfreeze_at >= config.epochs and not config.recipe.max_iter:
        notes.append(f"--unfreeze-at {config.unfreeze_at} comes after the last of {config.epochs} epochs")
    on_cpu = config.device == "@numpy"
    if on_cpu and train.fixed and not config.half:
        notes.append(blas.remark())
    if on_cpu:
        notes.append(blas.unlimited())
    return [note for note in notes if note]
