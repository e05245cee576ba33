"""The recipe of a training run: the settings of a solver.prototxt, and some more.

Source: caffe.proto ``SolverParameter``, sgd_solver.cpp, upgrade_proto.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.libm import expf, powf
from bridge.errors import FormatError, UsageError
from bridge.schema.message import Message

SOLVERS = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
"""Caffe's solver types, in the order of the old ``solver_type`` enum."""
POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid", "cosine")


@dataclass(frozen=True)
class Recipe:
    """How parameters are updated.

    Attributes:
        type: One of :data:`SOLVERS`, or the name of one of Chainer's optimizers.
        base_lr: Learning rate at the start.
        lr_policy: One of :data:`POLICIES`; Caffe does not have ``cosine``.
        gamma, power, stepsize, stepvalue: Settings of the policy, as in caffe.proto.
        max_iter: Number of iterations; 0 where the number of epochs decides.
        warmup: Iterations over which the rate rises linearly to that of the policy.
        momentum, momentum2, rms_decay, delta: Settings of the update rule, as in caffe.proto.
        weight_decay: Factor of the regularisation.
        regularization_type: ``L2`` or ``L1``.
        clip_gradients: Largest L2 norm of all gradients together; 0 or less is no limit.
        iter_size: Batches whose gradients make one update.
        label_smoothing: The share of the target that is spread evenly over all classes, 0 to below 1.
        seed: Seed of order, augmentation, dropout and fillers.
    """

    type: str = "SGD"
    base_lr: float = 0.01
    lr_policy: str = "fixed"
    gamma: float = 0.1
    power: float = 1.0
    stepsize: int = 0
    stepvalue: tuple[int, ...] = ()
    max_iter: int = 0
    warmup: int = 0
    momentum: float = 0.0
    momentum2: float = 0.999
    rms_decay: float = 0.99
    delta: float = 1e-8
    weight_decay: float = 0.0
    regularization_type: str = "L2"
    clip_gradients: float = -1.0
    iter_size: int = 1
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lr_policy not in POLICIES:
            raise UsageError(f"no learning-rate policy '{self.lr_policy}'", hint=f"policies: {', '.join(POLICIES)}")
        if self.regularization_type not in ("L1", "L2"):
            raise UsageError(f"regularization_type is '{self.regularization_type}'", expected="L1 or L2")
        if self.iter_size < 1:
            raise UsageError(f"iter_size is {self.iter_size}", expected="at least 1")
        if self.lr_policy == "step" and self.stepsize < 1:
            raise UsageError("lr_policy step needs a positive stepsize")
        if self.lr_policy == "multistep" and not self.stepvalue:
            raise UsageError("lr_policy multistep needs at least one stepvalue")
        if self.type in ("AdaGrad", "RMSProp") and self.momentum:
            raise UsageError(f"momentum is {self.momentum:g}", expected=f"0: {self.type} has none")
        if not 0 <= self.rms_decay < 1:
            raise UsageError(f"rms_decay is {self.rms_decay:g}", expected="0 to below 1")
        if self.base_lr < 0 or self.weight_decay < 0 or self.momentum < 0 or self.momentum >= 1:
            raise UsageError(
                f"rate {self.base_lr:g}, weight decay {self.weight_decay:g} and momentum {self.momentum:g}: "
                "expected no negative numbers, and momentum below 1"
            )
        if not all(map(math.isfinite, (self.base_lr, self.momentum, self.weight_decay, self.clip_gradients))):
            raise UsageError("rate, momentum, weight decay and the gradients' limit must be finite numbers")

    def rate(self, iteration: int) -> float:
        """The learning rate at an iteration, counted from 0.

        Source: ``SGDSolver::GetLearningRate``.
        """
        rate = self.base_lr if self.lr_policy == "fixed" else float(self.base_lr * self._factor(iteration))
        return rate * (iteration + 1) / (self.warmup + 1) if iteration < self.warmup else rate

    def current_step(self, iteration: int) -> int:
        """Steps of the policies ``step`` and ``multistep`` that the updates before an iteration have taken."""
        if self.lr_policy == "step":
            return max(0, iteration - 1) // self.stepsize
        return self._steps_taken(iteration - 1) if self.lr_policy == "multistep" else 0

    def _factor(self, i: int) -> Any:
        if self.lr_policy == "step":
            return float(self.gamma ** (i // self.stepsize))
        if self.lr_policy == "exp":
            return float(self.gamma**i)
        if self.lr_policy == "inv":
            return _powf(1 + np.float32(self.gamma) * np.float32(i), -self.power)
        if self.lr_policy == "multistep":
            return float(self.gamma ** self._steps_taken(i))
        if self.lr_policy == "poly":
            return _powf(max(np.float32(0), 1 - np.float32(i) / np.float32(self.max_iter)), self.power)
        if self.lr_policy == "sigmoid":
            return 1 / (1 + _expf(-np.float32(self.gamma) * np.float32(i - self.stepsize)))
        return (1 + math.cos(math.pi * min(1.0, i / self.max_iter))) / 2  # cosine

    def _steps_taken(self, iteration: int) -> int:
        """Number of ``stepvalue`` entries that are passed; as in Caffe, at most one more in each iteration."""
        taken, when = 0, -1
        for step in self.stepvalue:
            when = max(when + 1, step)
            if when > iteration:
                break
            taken += 1
        return taken


def _powf(base: np.float32, exponent: float) -> np.float32:
    made: np.float32 = powf(np.array([base]), exponent)[0]
    return made


def _expf(x: np.float32) -> np.float32:
    made: np.float32 = expf(np.array([min(x, np.float32(88))]))[0]
    return made


_READ = {
    "base_lr": float, "lr_policy": str, "gamma": float, "power": float, "stepsize": int, "max_iter": int,
    "momentum": float, "momentum2": float, "rms_decay": float, "delta": float, "weight_decay": float,
    "regularization_type": str, "clip_gradients": float, "iter_size": int, "type": str,
}  # fmt: skip
_CAFFES_OWN = {"base_lr": 0.0, "lr_policy": "", "gamma": 0.0, "power": 0.0}
"""Defaults of caffe.proto that differ from those of :class:`Recipe`."""
_IGNORED = {
    "net", "net_param", "train_net", "test_net", "train_net_param", "test_net_param", "train_state", "test_state",
    "test_iter", "test_interval", "test_compute_loss", "test_initialization", "display", "average_loss", "snapshot",
    "snapshot_prefix", "snapshot_diff", "snapshot_format", "solver_mode", "device_id", "debug_info",
    "snapshot_after_train", "layer_wise_reduce", "weights",
}  # fmt: skip


def read_solver(message: Message) -> Recipe:
    """A recipe from a solver.prototxt.

    Args:
        message: The parsed file.

    Raises:
        FormatError: A field is unknown or of the wrong kind, or fields contradict each other.

    Source: caffe.proto ``SolverParameter``.
    """
    values: dict[str, Any] = dict(_CAFFES_OWN)
    for name in message.names():
        if name in _READ:
            values[name] = _value(message, name)
        elif name == "stepvalue":
            values[name] = tuple(int(v) for v in message.all(name) if isinstance(v, int))
        elif name == "solver_type":
            values["type"] = _old_type(message)
        elif name == "random_seed":
            seed = message.get(name)
            values["seed"] = max(0, seed) if isinstance(seed, int) else 0
        elif name not in _IGNORED:
            raise FormatError(f"unknown solver parameter '{name}'", where=message.where)
    if values.get("type", "SGD") not in SOLVERS:
        raise FormatError(
            f"unknown solver type '{values['type']!s}'", where=message.where, hint=f"types: {', '.join(SOLVERS)}"
        )
    try:
        return Recipe(**values)
    except UsageError as error:
        raise FormatError(str(error.args[0]), where=message.where, hint=error.hint) from None


def net_of(message: Message) -> str:
    """The path of the training net in a solver.prototxt, as written there; empty where it gives none."""
    return next((text for name in ("train_net", "net") if (text := message.text(name, ""))), "")


def _value(message: Message, name: str) -> Any:
    value, kind = message.get(name), _READ[name]
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(np.float32(value))
    if isinstance(value, kind) and not isinstance(value, bool):
        return kind(value)
    raise FormatError(f"solver parameter '{name}' is {value!r}", expected=f"{kind.__name__}", where=message.where)


def _old_type(message: Message) -> str:
    value = message.get("solver_type")
    if isinstance(value, int) and 0 <= value < len(SOLVERS):
        return SOLVERS[value]
    found = {name.upper(): name for name in SOLVERS}.get(str(value).upper())
    if found is None:
        raise FormatError(f"unknown solver_type {value!r}", where=message.where)
    return found
