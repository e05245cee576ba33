"""What the layers of Caffe's forks need beside Chainer's functions; looked up through ``F``.

All of it works on NumPy and CuPy arrays alike, and is differentiable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.chain.functions import chainer
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.bn import BN

F = chainer.functions


def fork_batch_norm(x: Any, link: Any, layer: BN) -> Any:
    """The BN of PSPNet, TSN or SegNet, by stored statistics or by the batch's own.

    Args:
        x: Variable (N, C, ...).
        link: Holds ``gamma`` and ``beta``, and perhaps ``mean`` and ``variance``.
        layer: The layer's parameters.

    Source: bn_layer.cpp of PSPNet and SegNet.
    """
    gamma, beta = (_per_channel(array, x.ndim) for array in (link.gamma, link.beta))
    stored = hasattr(link, "mean")
    if not stored and layer.bn_mode == "INFERENCE":
        return x * gamma + beta
    train = stored and chainer.config.train and not layer.frozen and not getattr(link, "frozen", False)
    if stored and layer.stored and not train:
        mean, variance = (_per_channel(array, x.ndim) for array in (link.mean, link.variance))
        return (x - mean) / F.sqrt(variance + layer.eps) * gamma + beta
    axes = (0, *range(2, x.ndim))
    if train:
        _accumulate(x.array, axes, link, layer.momentum)
    centred = x - F.mean(x, axes, keepdims=True)
    return centred / F.sqrt(F.mean(centred**2, axes, keepdims=True) + layer.eps) * gamma + beta


def _per_channel(values: Any, rank: int) -> Any:
    return F.reshape(values, (values.size, *[1] * (rank - 2)))


def _accumulate(x: Any, axes: Shape, link: Any, momentum: float) -> None:
    """Move the stored statistics towards the batch's, as Caffe does in the forward pass."""
    for name, values in (("mean", x.mean(axis=axes)), ("variance", x.var(axis=axes))):
        old = getattr(link, name)
        setattr(link, name, (old * momentum + values.reshape(old.shape) * (1 - momentum)).astype(old.dtype))


def masked_unpooling(x: Any, mask: Any, space: Shape) -> Any:
    """Each value goes to its place in a plane of zeros; of several for one place the last one.

    Args:
        x: Variable (N, C, H, W).
        mask: Variable (N, C, H, W): the place in the plane, counted along its rows.
        space: (height, width) of the plane.

    Source: upsample_layer.cpp of SegNet.
    """
    xp = chainer.backend.get_array_module(x)
    planes, size = x.shape[0] * x.shape[1], space[0] * space[1]
    place = mask.array.astype(xp.int64).reshape(planes, -1) + (xp.arange(planes) * size)[:, None]
    place = place.reshape(-1)
    order = xp.arange(place.size, dtype=xp.int32)
    last = xp.zeros(planes * size, xp.int32)
    xp.maximum.at(last, place, order)
    kept = (last[place] == order).astype(x.dtype)
    plane = F.scatter_add(xp.zeros(planes * size, x.dtype), place, F.reshape(x, (-1,)) * kept)
    return F.reshape(plane, (*x.shape[:2], *space))


def corner_aligned_resize(x: Any, space: Shape) -> Any:
    """Bilinear resizing that keeps the corners.

    Args:
        x: Variable (N, C, H, W).
        space: (height, width) of the result.

    Source: interp.cpp of DeepLab.
    """
    for axis, size in zip((2, 3), space, strict=True):
        if x.shape[axis] != size:
            x = _interpolated(x, axis, size)
    return x


def _interpolated(x: Any, axis: int, size: int) -> Any:
    xp = chainer.backend.get_array_module(x)
    ratio = (x.shape[axis] - 1) / (size - 1) if size > 1 else 0.0
    at = xp.arange(size, dtype=xp.float32) * xp.float32(ratio)
    before = at.astype(xp.int64)
    after = xp.minimum(before + 1, x.shape[axis] - 1)
    weight = (at - before).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    leading = (slice(None),) * axis
    return x[(*leading, before)] * (1 - weight) + x[(*leading, after)] * weight
