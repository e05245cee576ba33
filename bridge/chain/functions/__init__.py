"""What layers call ``F``: Chainer's functions, and Caffe's where Chainer has no equal.

All of it works on NumPy and CuPy arrays alike, and is differentiable.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bridge.compat import import_chainer

chainer: Any = import_chainer()
_chainer_functions = chainer.functions
as_variable = chainer.as_variable

if TYPE_CHECKING:
    from bridge.layers.batch_norm import BatchNorm


_HOMES = {
    "convolution": "bridge.chain.functions.convolution",
    "deconvolution": "bridge.chain.functions.convolution",
    "linear": "bridge.chain.functions.linear",
    "dropout": "bridge.chain.functions.dropout",
    "local_response_normalization": "bridge.chain.functions.lrn",
    "largest": "bridge.chain.functions.ranking",
    "caffe_pooling": "bridge.chain.functions.pooling",
    "fork_batch_norm": "bridge.chain.functions.forks",
    "masked_unpooling": "bridge.chain.functions.forks",
    "corner_aligned_resize": "bridge.chain.functions.forks",
    "roi_max_pooling": "bridge.chain.functions.forks",
    "position_sensitive_pooling": "bridge.chain.functions.forks",
    "elu": "bridge.chain.functions.activations",
    "sigmoid": "bridge.chain.functions.activations",
    "softmax": "bridge.chain.functions.softmax",
    "softmax_loss": "bridge.chain.functions.softmax",
    "infogain_loss": "bridge.chain.functions.losses",
    "sigmoid_cross_entropy_loss": "bridge.chain.functions.losses",
    "margins": "bridge.chain.functions.losses",
    "log_loss": "bridge.chain.functions.losses",
    "contrastive_loss": "bridge.chain.functions.losses",
    "caffe_accuracy": "bridge.chain.functions.losses",
}
"""Our own functions, imported when a layer asks for them; all others are Chainer's."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        return getattr(_chainer_functions, name)
    module = importlib.import_module(_HOMES[name])
    # All of its functions: Python has put the module itself where a function of its name is looked for.
    globals().update({other: getattr(module, other) for other, home in _HOMES.items() if home == _HOMES[name]})
    return globals()[name]


def folded(x: Any, axis: int, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to ``x`` with all axes before ``axis`` as one batch axis.

    Args:
        x: Variable (batch axes..., channels, spatial axes...).
        axis: The channel axis.
        function: Takes and gives (batch, channels, spatial axes...), with at least one spatial axis.
    """
    axis %= x.ndim
    if axis == 1 and x.ndim > 2:
        return function(x)
    space = x.shape[axis + 1 :]
    y = function(_chainer_functions.reshape(x, (-1, x.shape[axis], *(space or (1,)))))
    return _chainer_functions.reshape(y, (*x.shape[:axis], y.shape[1], *y.shape[2:][: len(space)]))


def caffe_batch_norm(x: Any, link: Any, layer: BatchNorm) -> Any:
    """BatchNorm by the stored statistics, or by the batch's own, which it then adds to them.

    Args:
        x: Variable (N, C, ...).
        link: Holds ``mean``, ``variance`` and ``scale_factor``, and perhaps ``gamma`` and ``beta``.
        layer: The layer's parameters.

    Source: batch_norm_layer.cpp of BVLC Caffe and NVCaffe.
    """
    xp = chainer.backend.get_array_module(x)
    train = chainer.config.train and not getattr(link, "frozen", False)
    if layer.scale_bias:
        stored, gamma, beta = not train, link.gamma, link.beta
    else:
        stored = not train if layer.use_global_stats is None else layer.use_global_stats
        gamma, beta = xp.ones(x.shape[1], dtype=x.dtype), xp.zeros(x.shape[1], dtype=x.dtype)
    if stored:
        inverse = 1 if layer.scale_bias else _inverse(xp, link.scale_factor)
        mean, variance = link.mean * inverse, link.variance * inverse
        return _chainer_functions.fixed_batch_normalization(x, gamma, beta, mean, variance, eps=layer.eps)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    if train:
        _accumulate(x.array, axes, link, layer)
    return _chainer_functions.batch_normalization(
        x, gamma, beta, eps=layer.eps, running_mean=None, running_var=None, axis=axes
    )


def _inverse(xp: Any, factor: Any) -> Any:
    """One over the scale factor; 0 for 0."""
    zero = factor == 0
    return xp.where(zero, 0, 1 / xp.where(zero, 1, factor)).astype(factor.dtype)


def _accumulate(x: Any, axes: tuple[int, ...], link: Any, layer: BatchNorm) -> None:
    """Add the batch's statistics to the running ones, as Caffe does in the forward pass."""
    kept, size = layer.moving_average_fraction, x.size // x.shape[1]
    added = 1 - kept if layer.scale_bias else 1
    unbiased = size / (size - 1) if size > 1 and not layer.scale_bias else 1
    if not layer.scale_bias:
        link.scale_factor = (link.scale_factor * kept + 1).astype(link.scale_factor.dtype)
    link.mean = (link.mean * kept + added * x.mean(axis=axes)).astype(link.mean.dtype)
    link.variance = (link.variance * kept + added * unbiased * x.var(axis=axes)).astype(link.variance.dtype)
