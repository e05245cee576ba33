"""Caffe's update rules, as a Chainer optimizer.

Chainer's rules of the same names differ in details: where the rate enters, where epsilon is
added, what is corrected for bias. So Caffe's are written out here.

Source: sgd_solver.cpp, nesterov_solver.cpp, adagrad_solver.cpp, rmsprop_solver.cpp,
adadelta_solver.cpp, adam_solver.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridge.chain.freezing import is_frozen
from bridge.chain.functions import chainer
from bridge.finetuning import rule_kernels
from bridge.finetuning.arithmetic import Arithmetic, CaffesArithmetic
from bridge.finetuning.recipe import Recipe

_History = list[Any]
_CHUNK = 1 << 15
"""Values of a parameter that are updated at a time: they and intermediate values fit the processor's cache."""


class CaffeRule(chainer.UpdateRule):
    """Updates one parameter; ``lr_mult`` and ``decay_mult`` are those of its ParamSpec."""

    def __init__(self, optimizer: CaffeOptimizer) -> None:
        super().__init__()
        self._optimizer = optimizer
        self.lr_mult = 1.0
        self.decay_mult = 1.0
        self._usual = False

    def add_hook(self, *args: Any, **kwargs: Any) -> None:
        """Call a hook in each update."""
        self._usual = False
        super().add_hook(*args, **kwargs)

    def update(self, param: Any) -> None:
        """Update a parameter.

        From the second update on, a float32 parameter on the CPU without hooks skips Chainer's checks.
        """
        if self._usual and self.enabled and param._loss_scale is None:
            self.t += 1
            self.update_core(param)
            return
        super().update(param)
        hooks = self._hookable._pre_update_hooks or self._hookable._post_update_hooks
        self._usual = self.state is not None and param.xp is np and not self._use_fp32_update and not hooks

    def init_state(self, param: Any) -> None:
        """Make the histories, zeros of the parameter's shape."""
        with chainer.using_device(param.device):
            xp = param.device.xp
            for index in range(_HISTORIES[self._optimizer.recipe.type]):
                self.state[f"history{index}"] = xp.zeros_like(param.data)

    def update_core(self, param: Any) -> None:
        """One update."""
        optimizer, xp = self._optimizer, param.device.xp
        do = CaffesArithmetic() if optimizer.replay else Arithmetic(xp)
        history = [self.state[f"history{index}"] for index in range(_HISTORIES[optimizer.recipe.type])]
        arrays = (param.data, param.grad, *history)
        if rule_kernels.can_update(*arrays):
            rule_kernels.update(optimizer.recipe, arrays, optimizer.scale_of(xp), *self._factors(), optimizer.t)
        elif xp is np and param.size > _CHUNK and all(array.flags.c_contiguous for array in arrays):
            flat = [array.reshape(-1) for array in arrays]
            for start in range(0, param.size, _CHUNK):
                self._update(do, *(array[start : start + _CHUNK] for array in flat))
        else:
            self._update(do, *arrays)

    def _update(self, do: Arithmetic, data: Any, grad: Any, *history: Any) -> None:
        optimizer, recipe = self._optimizer, self._optimizer.recipe
        for scale in optimizer.grad_scales:
            grad = grad * scale
        decay, rate = self._factors()
        if decay:
            grad = do.plus(decay, data if recipe.regularization_type == "L2" else do.xp.sign(data), grad)
        data -= _STEPS[recipe.type](do, recipe, grad, list(history), rate, optimizer.t)

    def _factors(self) -> tuple[np.float32, np.float32]:
        """The parameter's weight decay and its rate."""
        decay = np.float32(self._optimizer.recipe.weight_decay) * np.float32(self.decay_mult)
        return decay, np.float32(self._optimizer.rate) * np.float32(self.lr_mult)


class CaffeOptimizer(chainer.GradientMethod):
    """A Caffe solver over the gradients that backward left in the parameters.

    Args:
        recipe: Rule, momentum, decay and clipping.
        params: The target's parameters in the net's order, in which the norm of their gradients is summed; empty
            is the target's own order.
        replay: Whether to round as Caffe does on a processor, for float32 parameters on the CPU.

    Attributes:
        rate: The learning rate of the next update.
        grad_scales: Factors on the gradients, applied one after the other before the update; numbers, or arrays on the
            device.
    """

    def __init__(self, recipe: Recipe, params: Sequence[Any] = (), *, replay: bool = False) -> None:
        super().__init__()
        self.recipe, self.replay, self._params = recipe, replay, params
        self.rate = recipe.rate(0)
        self.grad_scales: list[Any] = []
        self._scale: Any = None

    @property
    def lr(self) -> float:
        """The same as :attr:`rate`, by the name that Chainer's extensions know, such as ``observe_lr``."""
        return self.rate

    @lr.setter
    def lr(self, value: float) -> None:
        self.rate = value

    def create_update_rule(self) -> CaffeRule:
        """The rule for one parameter."""
        return CaffeRule(self)

    def update(self, lossfun: Any = None, *args: Any, **kwargs: Any) -> None:
        """One update at :attr:`rate`, from the gradients in the parameters or, if given, from those of ``lossfun``."""
        if lossfun is not None:
            loss = lossfun(*args, **kwargs)
            self.target.cleargrads()
            loss.backward(loss_scale=self._loss_scale)
        self.grad_scales, self._scale = self._clip(), None
        if self.recipe.iter_size != 1:
            self.grad_scales.append(np.float32(1) / np.float32(self.recipe.iter_size))
        self.call_hooks("pre")
        self.t += 1
        for param in self._params or self.target.params():
            if is_frozen(param):
                continue
            if param.grad is None:  # no loss depends on it; decay and momentum still act
                param.grad = param.xp.zeros_like(param.array)
            param.update()
        self.call_hooks("post")

    def scale_of(self, xp: Any) -> Any:
        """The product of :attr:`grad_scales`, (1) float32 on the device."""
        if self._scale is None:
            self._scale = xp.ones(1, np.float32)
            for scale in self.grad_scales:
                self._scale = self._scale * scale
        return self._scale

    def _clip(self) -> list[Any]:
        """The factor that reduces the norm of all gradients to ``clip_gradients``; none where it is not above.

        On a GPU, factor and norm stay on the device: each copy to the host would wait for it.
        """
        limit = np.float32(self.recipe.clip_gradients)
        if limit <= 0:
            return []
        grads = [param.grad for param in self._params or self.target.params() if param.grad is not None]
        grads = [grad.astype(np.float32, copy=False) for grad in grads]
        do = CaffesArithmetic() if self.replay else Arithmetic(self.target.xp)
        norm = do.norm(grads) / np.float32(self._loss_scale or 1)
        if do.xp is not np:
            return [do.xp.where(norm > limit, limit / norm, np.float32(1)).astype(np.float32)]
        return [np.float32(limit / norm)] if norm > limit else []


def _sgd(do: Arithmetic, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    do.blend(rate, g, np.float32(r.momentum), h[0])
    return h[0]


def _nesterov(do: Arithmetic, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    momentum, step = np.float32(r.momentum), h[0].copy()
    do.blend(rate, g, momentum, h[0])
    do.blend(1 + momentum, h[0], -momentum, step)
    return step


def _adagrad(do: Arithmetic, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    h[0] += do.square(g)
    return rate * (g / (do.root(h[0]) + np.float32(r.delta)))


def _rmsprop(do: Arithmetic, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    decay = np.float32(r.rms_decay)
    do.blend(1 - decay, do.square(g), decay, h[0])
    return rate * (g / (do.root(h[0]) + np.float32(r.delta)))


def _adadelta(do: Arithmetic, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    momentum, delta = np.float32(r.momentum), np.float32(r.delta)
    do.blend(1 - momentum, do.square(g), momentum, h[0])
    step = g * do.root((h[1] + delta) / (h[0] + delta))
    do.blend(1 - momentum, do.square(step), momentum, h[1])
    return rate * step


def _adam(do: Arithmetic, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    b1, b2 = np.float32(r.momentum), np.float32(r.momentum2)
    do.blend(1 - b1, g, b1, h[0])
    do.blend(1 - b2, g * g, b2, h[1])
    correction = np.float32(np.sqrt(1 - float(b2) ** t) / (1 - float(b1) ** t))
    return h[0] / (do.root(h[1]) + np.float32(r.delta)) * (rate * correction)


_STEPS: dict[str, Callable[..., Any]] = {
    "SGD": _sgd, "Nesterov": _nesterov, "AdaGrad": _adagrad, "RMSProp": _rmsprop, "AdaDelta": _adadelta, "Adam": _adam,
}  # fmt: skip
_HISTORIES = {"SGD": 1, "Nesterov": 1, "AdaGrad": 1, "RMSProp": 1, "AdaDelta": 2, "Adam": 2}
