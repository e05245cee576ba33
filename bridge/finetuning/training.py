"""Parts of a run for a ``chainer.training.Trainer`` of one's own: the cached trunk; freeze and rate as extensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.freezing import freeze, is_frozen, thaw
from bridge.chain.functions import chainer
from bridge.errors import UsageError
from bridge.finetuning.cut import find_cut
from bridge.finetuning.rules import CaffeOptimizer
from bridge.finetuning.trunk import Trunk, choose
from bridge.schema import Net

_CHUNK = 64
_SAMPLE = 4


class CachedTrunk:
    """The frozen layers below the lowest trained one: computed once per image, in place of once per image and epoch.

    Freeze layers first. What is frozen later is not in the trunk, and what is thawed later may be.

    Args:
        net: The net.
        chain: Its chain, with frozen layers.
        engine: ``chainer``, ``onnxruntime`` or ``auto``, as ``--trunk-engine``.

    Attributes:
        blobs: Names of the blobs that the trunk hands on.
        head: A ``chainer.Chain`` of the layers above: it takes these blobs, and gives what the chain gives. It holds
            the chain itself, as ``head.chain``.

    Raises:
        UsageError: No layer is below the lowest trained one, or the net has no input of images.
    """

    def __init__(self, net: Net, chain: NetChain, engine: str = "auto") -> None:
        images = [name for name, shape in net.inputs.items() if shape is not None and len(shape) == 4]
        if not images:
            raise UsageError("the net has no input of images, (N, C, H, W)", where=net.where)
        self._net, self._chain, self._engine, self._data = net, chain, engine, images[0]
        cut = find_cut(net, self._data, *_trained_and_frozen(net, chain))
        if cut is None:
            hint = 'bridge.freeze(chain, "conv*") freezes layers'
            raise UsageError("no frozen layers are below the lowest trained one", where=net.where, hint=hint)
        self._cut = cut
        self.blobs = cut.blobs
        self.head = _Head(chain, cut.index, cut.blobs)

    def dataset(self, x: np.ndarray, labels: np.ndarray) -> Any:
        """The trunk's blobs and the label of each image.

        Args:
            x: Preprocessed images (N, C, H, W) float32.
            labels: Their labels, (N, ...).

        Returns:
            A ``chainer.datasets.TupleDataset`` whose rows are ``(blob, ..., label)``.

        Raises:
            UsageError: There are no images, or not as many labels.
        """
        if not len(x) or len(x) != len(labels):
            raise UsageError(
                f"{len(x)} images and {len(labels)} labels", expected="as many labels as images, 1 or more"
            )
        x = np.ascontiguousarray(x, np.float32)
        choice = choose(self._net, self._chain, self._cut, self._data, self._engine, x[:_SAMPLE])
        trunk = Trunk(self._chain, self._cut, self._data, choice.onnx)
        parts = [trunk.to_host(x[start : start + _CHUNK]) for start in range(0, len(x), _CHUNK)]
        features = [np.concatenate([part[blob] for part in parts]) for blob in self.blobs]
        return chainer.datasets.TupleDataset(*features, labels)

    def iterator(self, x: np.ndarray, labels: np.ndarray, batch_size: int, **options: Any) -> Any:
        """A ``chainer.iterators.SerialIterator`` over :meth:`dataset`.

        Args:
            x: Preprocessed images (N, C, H, W) float32.
            labels: Their labels, (N, ...).
            batch_size: Images per batch.
            options: ``repeat``, ``shuffle`` and others of ``SerialIterator``.

        Raises:
            UsageError: There are no images, or not as many labels.
        """
        return chainer.iterators.SerialIterator(self.dataset(x, labels), batch_size, **options)


def _trained_and_frozen(net: Net, chain: NetChain) -> tuple[list[str], list[str]]:
    """Names of the layers with a trained parameter, and of those whose running statistics are kept."""
    trained, frozen = [], []
    for index, layer in enumerate(net.layers):
        roles = chain.roles(index)
        arrays = [chain.array(index, role) for role in roles]
        if any(isinstance(array, chainer.Parameter) and not is_frozen(array) for array in arrays):
            trained.append(layer.name)
        if roles and all(chain.holder(index, role).frozen for role in roles):
            frozen.append(layer.name)
    return trained, frozen


class _Head(chainer.Chain):
    """The layers of a chain above a cut."""

    def __init__(self, chain: NetChain, start: int, blobs: tuple[str, ...]) -> None:
        super().__init__()
        self._start, self._blobs = start, blobs
        with self.init_scope():
            self.chain = chain

    def forward(self, *features: Any) -> Any:
        """The chain's output, or a dict of several, from the trunk's blobs in order."""
        if len(features) != len(self._blobs):
            raise UsageError(f"got {len(features)} blobs", expected=", ".join(self._blobs))
        values = self.chain.run(dict(zip(self._blobs, features, strict=True)), start=self._start)
        outputs = {name: values[name] for name in self.chain.net_outputs if name in values}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


class Freeze(chainer.training.Extension):
    """A trainer's extension that freezes layers, from its start or its resumption until an epoch.

    ``trainer.extend(Freeze("conv*", until=3))`` trains the convolutions from the fourth epoch on.

    Args:
        patterns: As for :func:`bridge.freeze`.
        until: The number of epochs; -1 is until the end.

    Raises:
        UsageError: A pattern matches nothing, when the trainer starts.
    """

    trigger = (1, "epoch")
    priority = chainer.training.PRIORITY_EDITOR

    def __init__(self, *patterns: str, until: int = -1) -> None:
        self._patterns, self._until = patterns, until

    def initialize(self, trainer: Any) -> None:
        """Freeze the layers, or thaw them where their epochs are over."""
        over = 0 <= self._until <= trainer.updater.epoch
        for optimizer in trainer.updater.get_all_optimizers().values():
            (thaw if over else freeze)(optimizer.target, *self._patterns)

    def __call__(self, trainer: Any) -> None:
        """Thaw the layers once their epochs are over."""
        if trainer.updater.epoch == self._until:
            self.initialize(trainer)


class RateSchedule(chainer.training.Extension):
    """A trainer's extension that gives each :class:`CaffeOptimizer` the rate of its recipe at every iteration.

    ``trainer.extend(RateSchedule())`` follows ``lr_policy``, ``gamma``, ``stepsize`` and ``warmup``.

    Source: ``SGDSolver::GetLearningRate``.
    """

    trigger = (1, "iteration")

    def initialize(self, trainer: Any) -> None:
        """Set the rate of the first update."""
        self(trainer)

    def __call__(self, trainer: Any) -> None:
        """Set the rate of the next update."""
        for optimizer in trainer.updater.get_all_optimizers().values():
            if isinstance(optimizer, CaffeOptimizer):
                optimizer.rate = optimizer.recipe.rate(trainer.updater.iteration)
