"""Optimizers: Caffe's rules or Chainer's, with a rate and a decay for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.devices import numbers_on_host
from bridge.chain.functions import chainer
from bridge.errors import ModelError, UsageError
from bridge.finetuning.recipe import SOLVERS, Recipe
from bridge.finetuning.rules import CaffeOptimizer
from bridge.finetuning.selection import matching
from bridge.schema import Net

_RATES = ("alpha", "lr")
"""Names of the learning rate in Chainer's optimizers."""
LOSS_SCALE = 128.0
"""First factor on the loss in float16, where small gradients would become 0; the update divides by it."""
_CALM = 1000
"""Updates without an overflow after which the factor is doubled."""
_GREATEST = 2.0**24
Factors = tuple[float, float]
"""Factors on the learning rate and on the weight decay."""


class Updater:
    """An optimizer and the rate of each parameter.

    Args:
        recipe: Names the optimizer and its settings.
        chain: The chain; its parameters get their update rules.
        factors: Each parameter with its factors.
        half: Whether parameters are float16; they are updated as float32.
        replay: Whether a Caffe run is replayed; on the CPU the updates then have Caffe's bits.

    Attributes:
        optimizer: Chainer's, or Caffe's in Chainer's form.
        loss_scale: Factor on the loss in the backward pass; ``None`` is 1. A step whose gradients overflow is left out
            and halves it; a thousand steps without double it.
        calm: Steps without an overflow since it was changed.

    Raises:
        UsageError: There is no optimizer of that name.
    """

    def __init__(
        self,
        recipe: Recipe,
        chain: NetChain,
        factors: list[tuple[Any, Factors]],
        *,
        half: bool = False,
        replay: bool = False,
    ) -> None:
        self._recipe, self._factors = recipe, factors
        self._caffe = recipe.type in SOLVERS
        replay = replay and chain.xp is np and not half
        params = [param for param, _ in factors]
        self.optimizer: Any = CaffeOptimizer(recipe, params, replay=replay) if self._caffe else _chainers(recipe)
        self.loss_scale: float | None = None
        self.calm = 0
        if half:
            self.optimizer.use_fp32_update()
            self.set_loss_scale(LOSS_SCALE)
        self.optimizer.setup(chain)
        for param, (lr, decay) in factors:
            if self._caffe:
                param.update_rule.lr_mult, param.update_rule.decay_mult = lr, decay
            elif recipe.weight_decay and decay and not self._decoupled:
                param.update_rule.add_hook(chainer.optimizer_hooks.WeightDecay(recipe.weight_decay * decay))
        if not self._caffe and recipe.clip_gradients > 0:
            self.optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(recipe.clip_gradients))

    @property
    def _decoupled(self) -> bool:
        """Whether the optimizer subtracts the decay itself, apart from the gradient."""
        return isinstance(self.optimizer, chainer.optimizers.AdamW)

    def set_loss_scale(self, value: float, calm: int = 0) -> None:
        """Change the factor on the loss; ``calm`` is the number of steps that it has had without an overflow."""
        self.loss_scale, self.calm = value, calm
        self.optimizer.set_loss_scale(value)

    def update(self, rate: float) -> None:
        """One update from the gradients; none where gradients have overflowed in float16.

        Args:
            rate: The learning rate; each parameter has its own factor on it.
        """
        if self.loss_scale is not None and not self._rescale(self.loss_scale):
            return
        if self._caffe:
            self.optimizer.rate = rate
        else:
            self._set_rate(rate)
        self.optimizer.update()

    def _rescale(self, scale: float) -> bool:
        """Adapt the factor on the loss to the gradients; whether they are finite."""
        grads = [param.grad for param, _ in self._factors if param.grad is not None]
        if grads and not all(numbers_on_host([abs(grad).max() < np.inf for grad in grads])):
            self.set_loss_scale(max(1.0, scale / 2))
            return False
        self.calm += 1
        if self.calm == _CALM:
            self.set_loss_scale(min(_GREATEST, scale * 2))
        return True

    def _set_rate(self, rate: float) -> None:
        recipe = self._recipe
        for param, (lr, decay) in self._factors:
            hyperparam = param.update_rule.hyperparam
            name = next((name for name in _RATES if hasattr(hyperparam, name)), None)
            if name is not None:
                setattr(hyperparam, name, rate * lr)
            if self._decoupled:
                hyperparam.weight_decay_rate = rate * lr * recipe.weight_decay * decay
            if recipe.iter_size > 1 and param.grad is not None:
                param.grad = param.grad / recipe.iter_size


def _chainers(recipe: Recipe) -> Any:
    name = recipe.type.removeprefix("chainer.")
    maker = getattr(chainer.optimizers, name, None)
    if not isinstance(maker, type) or not issubclass(maker, chainer.GradientMethod):
        found = [n for n, kind in vars(chainer.optimizers).items() if _is_method(kind)]
        known = f"Caffe's: {', '.join(SOLVERS)}; Chainer's: {', '.join(sorted(found))}"
        raise UsageError(f"no optimizer '{recipe.type}'", hint=known)
    optimizer = maker()
    if hasattr(optimizer.hyperparam, "momentum"):
        optimizer.hyperparam.momentum = recipe.momentum
    return optimizer


def _is_method(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, chainer.GradientMethod)


def factors_of(net: Net, chain: NetChain, given: Mapping[str, float]) -> list[tuple[Any, Factors]]:
    """Each parameter of the chain once, with its factors on rate and decay.

    Args:
        net: The net; its prototxt gives ``lr_mult`` and ``decay_mult``.
        chain: Its chain.
        given: Pattern of layer names -> factor on the rate, on top of the prototxt's.

    Raises:
        ModelError: Layers that share a parameter disagree.
        UsageError: A pattern chooses no layer.

    Source: ``Net::AppendParam``.
    """
    own = {name: factor for pattern, factor in given.items() for name in matching(net, [pattern])}
    found: dict[int, tuple[Any, dict[str, float], str]] = {}
    for index, layer in enumerate(net.layers):
        for place, role in enumerate(chain.roles(index)):
            param = chain.array(index, role)
            if not isinstance(param, chainer.Parameter):
                continue
            given_here = _given(layer, place)
            known = found.setdefault(id(param), (param, given_here, layer.name))[1]
            for field, value in given_here.items():
                if known.setdefault(field, value) != value:
                    raise ModelError(f"shares a parameter with another {field}, {known[field]:g}", subject=layer.label)
    return [
        (param, (factors.get("lr_mult", 1.0) * own.get(name, 1.0), factors.get("decay_mult", 1.0)))
        for param, factors, name in found.values()
    ]


def _given(layer: Any, place: int) -> dict[str, float]:
    """The factors that a layer's definition gives for a blob; those that it leaves out are not in it."""
    specs = layer.definition.messages("param")
    if place >= len(specs):
        return {}
    spec = layer.param(place)
    return {name: getattr(spec, name) for name in ("lr_mult", "decay_mult") if name in specs[place]}
