"""A solver's updates: clip, normalise, regularise, step. Source: sgd_solver.cpp ``SGDSolver::ApplyUpdate``."""

from __future__ import annotations

import dataclasses

import numpy as np

from bridge.caffe.net import Net
from bridge.caffe.state import log
from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.finetuning.arithmetic import CaffesArithmetic
from bridge.finetuning.recipe import Recipe
from bridge.finetuning.rules import CaffeOptimizer
from bridge.schema import Blob, Shape, times


class Updates:
    """The update rule of a solver and its history.

    The rule works on a step for each parameter, zeros before; what it takes off is the update, which
    then is in the parameter's diff, as in Caffe.

    Args:
        net: The net.
        recipe: Rule, momentum, decay and so on.
    """

    def __init__(self, net: Net, recipe: Recipe) -> None:
        self._recipe, self._do = recipe, CaffesArithmetic()
        self._blobs = net.learnable_params
        self._lr, self._decay = net.params_lr, net.params_weight_decay
        self._steps = [chainer.Parameter(np.zeros(blob.count, np.float32)) for blob in self._blobs]
        link = chainer.Link()
        with link.init_scope():
            for index, step in enumerate(self._steps):
                setattr(link, f"step{index}", step)
        bare = dataclasses.replace(recipe, weight_decay=0.0, clip_gradients=-1.0, iter_size=1)
        self._optimizer = CaffeOptimizer(bare, self._steps, replay=True).setup(link)
        for step, rate in zip(self._steps, self._lr, strict=True):
            step.update_rule.lr_mult = rate
            step.update_rule._state = {}
            step.update_rule.init_state(step)

    def apply(self, rate: float, iteration: int) -> None:
        """Update all parameters from their diffs.

        Args:
            rate: The learning rate.
            iteration: How many updates were made before.
        """
        gradients = [blob.gradient().reshape(-1) for blob in self._blobs]
        self._clip(gradients)
        weight_decay = np.float32(self._recipe.weight_decay)
        for blob, gradient, decay in zip(self._blobs, gradients, self._decay, strict=True):
            if self._recipe.iter_size > 1:
                gradient *= np.float32(1) / np.float32(self._recipe.iter_size)
            self._regularise(blob.values().reshape(-1), gradient, weight_decay * np.float32(decay))
        for step, gradient in zip(self._steps, gradients, strict=True):
            step.array[...] = 0
            step.grad = gradient
        self._optimizer.rate, self._optimizer.t = rate, iteration
        self._optimizer.update()
        for step, blob, gradient in zip(self._steps, self._blobs, gradients, strict=True):
            np.negative(step.array, out=gradient)
            step.grad = None
            blob.values().reshape(-1)[...] -= gradient

    def _clip(self, gradients: list[np.ndarray]) -> None:
        limit = np.float32(self._recipe.clip_gradients)
        if limit < 0:
            return
        norm = self._do.norm(gradients)
        if norm > limit:
            factor = limit / norm
            log(f"Gradient clipping: scaling down gradients (L2 norm {norm:g} > {limit:g}) by scale factor {factor:g}")
            for gradient in gradients:
                gradient *= factor

    def _regularise(self, values: np.ndarray, gradient: np.ndarray, decay: np.float32) -> None:
        if decay:
            pull = values if self._recipe.regularization_type == "L2" else np.sign(values)
            self._do.plus(decay, pull, gradient, out=gradient)

    # -- what a solverstate holds ------------------------------------------------------------------

    def history(self) -> list[Blob]:
        """The rule's arrays in a solverstate's order."""
        return [Blob.of(array.copy().reshape(shape)) for array, shape in self._arrays()]

    def _arrays(self) -> list[tuple[np.ndarray, Shape]]:
        names = sorted(self._steps[0].update_rule.state) if self._steps else []
        pairs = list(zip(self._steps, self._blobs, strict=True))
        return [(step.update_rule.state[name], blob.dims) for name in names for step, blob in pairs]

    def restore(self, history: tuple[Blob, ...], where: str) -> None:
        """Take over the arrays of a solverstate.

        Raises:
            ModelError: They are not this solver's; nothing is taken over then.
        """
        arrays = self._arrays()
        if len(history) != len(arrays):
            raise ModelError(f"has {len(history)} arrays of history", expected=f"{len(arrays)}", where=where)
        for index, ((_, shape), blob) in enumerate(zip(arrays, history, strict=True)):
            old = (*[1] * (4 - len(shape)), *shape)  # as files of before 2015 have it
            if blob.shape not in (shape, old):
                raise ModelError(f"history {index} is {times(blob.shape)}", expected=f"{times(shape)}", where=where)
        for (array, _), blob in zip(arrays, history, strict=True):
            array[...] = blob.numpy().reshape(-1)
