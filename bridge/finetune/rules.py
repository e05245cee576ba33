"""Caffe's update rules, as a Chainer optimizer.

Where Chainer has a rule of the same name it differs in detail (where the rate enters,
where epsilon is added, what is corrected for bias), so these are written out.

Source: sgd_solver.cpp, nesterov_solver.cpp, adagrad_solver.cpp, rmsprop_solver.cpp,
adadelta_solver.cpp, adam_solver.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bridge.chain.freezing import is_frozen
from bridge.chain.functions import chainer
from bridge.finetune.recipe import Recipe

_History = list[Any]
_CHUNK = 1 << 15
"""Values that are updated at a time, where a parameter has more: they and what comes between stay in the cache."""


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
        """Update a parameter; the second time at once where it is on the CPU, is float32 and has no hooks."""
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
        recipe, xp = self._optimizer.recipe, param.device.xp
        history = [self.state[f"history{index}"] for index in range(_HISTORIES[recipe.type])]
        arrays = (param.data, param.grad, *history)
        if xp is np and param.size > _CHUNK and all(array.flags.c_contiguous for array in arrays):
            flat = [array.reshape(-1) for array in arrays]
            for start in range(0, param.size, _CHUNK):
                self._update(np, *(array[start : start + _CHUNK] for array in flat))
        else:
            self._update(xp, *arrays)

    def _update(self, xp: Any, data: Any, grad: Any, *history: Any) -> None:
        optimizer, recipe = self._optimizer, self._optimizer.recipe
        grad = _regularised(xp, recipe, data, grad, optimizer.grad_scale, recipe.weight_decay * self.decay_mult)
        rate = np.float32(optimizer.rate * self.lr_mult)
        data -= _STEPS[recipe.type](xp, recipe, grad, list(history), rate, optimizer.t)


class CaffeOptimizer(chainer.GradientMethod):
    """A Caffe solver over the gradients that backward left in the parameters.

    Attributes:
        recipe: Rule, momentum, decay and clipping.
        rate: The learning rate of the next update.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.rate = recipe.rate(0)
        self.grad_scale = np.float32(1)

    def create_update_rule(self) -> CaffeRule:
        """The rule for one parameter."""
        return CaffeRule(self)

    def update(self, lossfun: Any = None, *args: Any, **kwargs: Any) -> None:
        """One update from the gradients, or from those of ``lossfun``, at the rate that was set."""
        if lossfun is not None:
            loss = lossfun(*args, **kwargs)
            self.target.cleargrads()
            loss.backward(loss_scale=self._loss_scale)
        self.grad_scale = np.float32(self._clip() / self.recipe.iter_size)
        self.call_hooks("pre")
        self.t += 1
        for param in self.target.params():
            if is_frozen(param):
                continue
            if param.grad is None:  # no loss reaches it; decay and momentum do
                param.grad = param.xp.zeros_like(param.array)
            param.update()
        self.call_hooks("post")

    def _clip(self) -> float:
        """The factor that brings the norm of all gradients down to the limit."""
        limit = self.recipe.clip_gradients
        if limit <= 0:
            return 1.0
        grads = [param.grad.astype(np.float32, copy=False) for param in self.target.params() if param.grad is not None]
        total = sum(float((grad * grad).sum()) for grad in grads)
        norm = float(np.sqrt(np.float32(total))) / (self._loss_scale or 1.0)
        return limit / norm if norm > limit else 1.0


def _regularised(xp: Any, recipe: Recipe, data: Any, grad: Any, scale: np.float32, decay: float) -> Any:
    """The gradient, scaled, with the derivative of the regularisation added; a new array or the gradient."""
    if scale != 1:
        grad = grad * scale
    if not decay:
        return grad
    return grad + np.float32(decay) * (data if recipe.regularization_type == "L2" else xp.sign(data))


def _sgd(xp: Any, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    h[0] *= np.float32(r.momentum)
    h[0] += rate * g
    return h[0]


def _nesterov(xp: Any, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    momentum = np.float32(r.momentum)
    before = momentum * h[0]
    _sgd(xp, r, g, h, rate, t)
    return (1 + momentum) * h[0] - before


def _adagrad(xp: Any, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    h[0] += g * g
    return rate * (g / (xp.sqrt(h[0]) + np.float32(r.delta)))


def _rmsprop(xp: Any, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    h[0] *= np.float32(r.rms_decay)
    h[0] += np.float32(1 - r.rms_decay) * (g * g)
    return rate * (g / (xp.sqrt(h[0]) + np.float32(r.delta)))


def _adadelta(xp: Any, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    momentum, delta = np.float32(r.momentum), np.float32(r.delta)
    h[0] *= momentum
    h[0] += (1 - momentum) * (g * g)
    step = g * xp.sqrt((h[1] + delta) / (h[0] + delta))
    h[1] *= momentum
    h[1] += (1 - momentum) * (step * step)
    return rate * step


def _adam(xp: Any, r: Recipe, g: Any, h: _History, rate: np.float32, t: int) -> Any:
    b1, b2 = np.float32(r.momentum), np.float32(r.momentum2)
    h[0] *= b1
    h[0] += (1 - b1) * g
    h[1] *= b2
    h[1] += (1 - b2) * (g * g)
    correction = np.float32(np.sqrt(1 - float(b2) ** t) / (1 - float(b1) ** t))
    return h[0] / (xp.sqrt(h[1]) + np.float32(r.delta)) * (rate * correction)


_STEPS: dict[str, Callable[..., Any]] = {
    "SGD": _sgd, "Nesterov": _nesterov, "AdaGrad": _adagrad, "RMSProp": _rmsprop, "AdaDelta": _adadelta, "Adam": _adam,
}  # fmt: skip
_HISTORIES = {"SGD": 1, "Nesterov": 1, "AdaGrad": 1, "RMSProp": 1, "AdaDelta": 2, "Adam": 2}
