"""ELU: on the CPU with Caffe's bits, elsewhere Chainer's own.

Source: elu_layer.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.libm import expf

_elu: Any = chainer.functions.activation.elu


def elu(x: Any, alpha: float = 1.0) -> Any:
    """``x`` where it is positive, ``alpha (exp(x) - 1)`` elsewhere.

    Args:
        x: Variable of any shape.
        alpha: The factor below 0.

    Returns:
        Variable of the shape and dtype of ``x``.

    Source: elu_layer.cpp; ``chainer.functions.elu``.
    """
    return ELU(alpha).apply((x,))[0]


class ELU(_elu.ELU):
    """Chainer's function with the exponential of Caffe's C library. Exporters know it by the name of the class."""

    def forward_cpu(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
        """The activations."""
        (x,) = inputs
        if x.dtype != np.float32:
            result: tuple[np.ndarray] = super().forward_cpu(inputs)
            return result
        if self.alpha < 0:
            self.retain_inputs((0,))
        self.retain_outputs((0,))
        y = expf(np.minimum(x, 0))
        y -= 1
        y *= np.float32(self.alpha)
        y += np.maximum(x, 0)
        return (y,)
