"""Caffe's update rules on a GPU: one kernel reads and writes each array once.

Source: the ``*_solver.cu`` of each rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.functions.helper_kernels import Kernel
from bridge.finetuning.recipe import SOLVERS, Recipe

_update = Kernel(
    "caffe_update",
    """extern "C" __global__ void caffe_update(
    float* data, const float* grad, float* a, float* b, const float* scale, int n, int rule, int l1, float decay,
    float rate, float momentum, float second, float delta, float correction) {
    EACH(i, n) {
        float w = data[i], g = grad[i] * scale[0], step;
        g += decay * (l1 ? (w > 0) - (w < 0) : w);
        if (rule == 0) step = a[i] = rate * g + momentum * a[i];
        else if (rule == 1) {
            float before = a[i];
            a[i] = rate * g + momentum * before;
            step = (1 + momentum) * a[i] - momentum * before;
        }
        else if (rule == 2) { a[i] += g * g; step = rate * (g / (sqrtf(a[i]) + delta)); }
        else if (rule == 3) { a[i] = (1 - second) * g * g + second * a[i]; step = rate * (g / (sqrtf(a[i]) + delta)); }
        else if (rule == 4) {
            a[i] = (1 - momentum) * g * g + momentum * a[i];
            step = g * sqrtf((b[i] + delta) / (a[i] + delta));
            b[i] = (1 - momentum) * step * step + momentum * b[i];
            step *= rate;
        }
        else {
            a[i] = (1 - momentum) * g + momentum * a[i];
            b[i] = (1 - second) * g * g + second * b[i];
            step = a[i] / (sqrtf(b[i]) + delta) * (rate * correction);
        }
        data[i] = w - step;
    }
}""",
)


def can_update(*arrays: Any) -> bool:
    """Whether the kernel takes a parameter with its gradient and histories: all float32, in C order, on a GPU."""
    return all(
        not isinstance(array, np.ndarray) and array.dtype == np.float32 and array.flags.c_contiguous for array in arrays
    )


def update(recipe: Recipe, arrays: tuple[Any, ...], scale: Any, decay: Any, rate: Any, t: int) -> None:
    """Update a parameter in place.

    Args:
        recipe: The rule and its settings.
        arrays: Parameter, gradient and histories, of one shape.
        scale: Factor on the gradient, (1) float32 on the device.
        decay: Factor of the regularisation.
        rate: The learning rate of this parameter.
        t: The number of the update, from 1 on.
    """
    data, grad, *history = arrays
    xp = chainer.backend.get_array_module(data)
    b1, b2 = np.float32(recipe.momentum), np.float32(recipe.momentum2)
    correction = np.sqrt(1 - float(b2) ** t) / (1 - float(b1) ** t)
    rule, second = SOLVERS.index(recipe.type), recipe.rms_decay if recipe.type == "RMSProp" else recipe.momentum2
    settings = (decay, rate, recipe.momentum, second, recipe.delta, correction)
    numbers = [float(number) for number in settings]
    l1 = int(recipe.regularization_type == "L1")
    _update(xp, data.size, data, grad, history[0], history[-1], scale, data.size, rule, l1, *numbers)
