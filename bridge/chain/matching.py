"""What a link keeps of a layer: which blob goes into which of its arrays, and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.build import LayerLink
from bridge.chain.devices import to_host
from bridge.chain.functions import chainer
from bridge.errors import ModelError
from bridge.schema import Layer, Shape, count, times
from bridge.schema.groups import unspread_groups
from bridge.schema.initializer import Initializer

_L = chainer.links
_STATISTICS = {"avg_mean", "avg_var"}
_ROLES = ((_L.PReLU, "slope"), (_L.Scale, "gamma"), (_L.Bias, "bias"))
"""The role that a link of that class is for, where it is not the weight."""
_DECONVOLUTIONS = (_L.Deconvolution2D, _L.DeconvolutionND)


@dataclass(frozen=True)
class Part:
    """What a link keeps of a layer in one array.

    Attributes:
        layer: The layer.
        role: The blob's role.
        link: The link.
        array: The name of the array in the link; ``bias/b`` is one of a link within.
        values: Values in place of the blob's own.
    """

    layer: Layer
    role: str
    link: Any
    array: str
    values: np.ndarray | None = None

    @property
    def target(self) -> Any:
        """The parameter or persistent value.

        Raises:
            ModelError: The link has none of that name.
        """
        holder, name = self._place()
        if name not in holder._params and name not in holder._persistent:
            raise ModelError(f"the link has no '{self.array}'")
        return getattr(holder, name)

    def _place(self) -> tuple[Any, str]:
        *inner, name = self.array.split("/")
        holder = self.link
        for part in inner:
            holder = getattr(holder, part, chainer.Link())
        return holder, name

    def shaped(self) -> np.ndarray:
        """The values that the array is to hold, in its shape.

        Raises:
            ModelError: They do not fit; says both shapes.
        """
        have = getattr(self.target, "array", self.target)
        if self.values is not None:
            return _reshaped(self.values, self.values.shape if have is None else have.shape)
        self._check_groups(have)
        shape = have.shape if have is not None else _wanted(self.layer, self.role, self.link)
        try:
            return Initializer(self.layer, self.role).shaped(tuple(shape))
        except ModelError:
            own = times(self.layer.blobs.blob(self.role).shape)
            raise ModelError(f"{own} does not fit {times(shape)}") from None

    def _check_groups(self, have: Any) -> None:
        """A weight of another number of groups can have the blob's very shape, and be another function."""
        link, group = self.link, self.layer.group
        groups = link.layer.group if isinstance(link, LayerLink) else getattr(link, "groups", None)
        if self.role != "weight" or groups in (None, group):
            return
        own = self.layer.blobs.blob("weight").shape
        if groups != 1 or (have is not None and have.shape == own):
            raise ModelError(f"{times(own)} in {group} groups does not fit a link of {groups}")

    def fill(self, values: np.ndarray) -> None:
        """Put the values into the array, wherever it is; one that has no size yet gets theirs."""
        if self.target is None:  # the statistics of a BatchNormalization that was given no size
            self.link._initialize_params(values.shape)
        target = self.target
        if isinstance(target, chainer.Parameter):
            if target.array is None:
                own, target.initializer = target.initializer, _Nothing(target.initializer)
                target.initialize(values.shape)
                target.initializer = own
            target = target.array
        with np.errstate(all="ignore"):  # float64 of a file may be more than float32 can hold
            target[...] = chainer.backend.get_array_module(target).asarray(values.astype(target.dtype, copy=False))

    def current(self) -> np.ndarray:
        """A copy of what the array holds, on the CPU.

        Raises:
            ModelError: It has no size yet.
        """
        target = getattr(self.target, "array", self.target)
        if target is None:
            raise ModelError(f"'{self.array}' has no values yet")
        return np.array(to_host(target))

    def restored(self, array: np.ndarray) -> np.ndarray:
        """The other way round: what the array holds as the blob has it.

        Raises:
            ModelError: It does not fit, or a dense weight joins what the layer's groups keep apart.
        """
        own = self.layer.blobs.blob(self.role).shape
        group = self.layer.group if self.role == "weight" else 1
        if group > 1 and array.size == count(own) * group:
            return unspread_groups(array.reshape(own[0], own[1] * group, *own[2:]), group)
        turned = self.role == "weight" and self.layer.weight_transposed
        if turned and (array.shape != own or own[0] == own[1]):
            return _reshaped(array, own[::-1]).T
        return _reshaped(array, own)


class _Nothing:
    """An initializer that leaves an array as it is, for one that is filled next; a random one takes its time."""

    def __init__(self, own: Any) -> None:
        self.dtype = getattr(own, "dtype", None)

    def __call__(self, array: Any) -> None:
        """Leave the array as it is."""


def _reshaped(array: np.ndarray, shape: Shape) -> np.ndarray:
    if array.size != count(shape):
        raise ModelError(f"{times(array.shape)} does not fit {times(shape)}")
    return array.reshape(shape)


def _wanted(layer: Layer, role: str, link: Any) -> Shape:
    """The shape of an array that has none yet: the blob's, as a link of that class and size would have it.

    Raises:
        ModelError: The link's own numbers contradict the blob.
    """
    shape = layer.blobs.blob(role).shape
    if role != "weight":
        return shape
    if layer.weight_transposed:
        shape = shape[::-1]
    groups = getattr(link, "groups", 1)
    if groups != layer.group:  # a dense link
        shape = (shape[0], shape[1] * layer.group, *shape[2:])
    kernel = getattr(link, "ksize", None)
    if kernel is not None and len(shape) == 2:  # an InnerProduct's weight for a convolution over the whole image
        kernel = kernel if hasattr(kernel, "__len__") else (kernel, kernel)
        shape = (shape[0], shape[1] // count(kernel), *kernel)
    elif isinstance(link, _L.Linear):
        shape = (shape[0], count(shape[1:]))
    _check_outputs(layer, link, shape, groups)
    return shape


def _check_outputs(layer: Layer, link: Any, shape: Shape, groups: int) -> None:
    wanted = getattr(link, "out_channels", None) or getattr(link, "out_size", None)
    outputs = shape[1] * groups if layer.inputs_first else shape[0]
    if wanted is not None and wanted != outputs:
        raise ModelError(f"{times(shape)} does not fit a link of {wanted} outputs")
    kernel = getattr(link, "ksize", None)
    if kernel is not None and tuple(np.broadcast_to(kernel, len(shape) - 2)) != tuple(shape[2:]):
        raise ModelError(f"{times(shape)} does not fit a kernel of {kernel}")


def parts(layer: Layer, link: Any, *, affine: bool = False) -> list[Part]:
    """What the link keeps of the layer's blobs, in their order.

    Args:
        layer: The layer.
        link: The link.
        affine: Whether the layer is a Scale whose blobs go into a BatchNormalization.
    """
    if affine:
        return [Part(layer, role, link, role) for role in layer.blobs]
    if normalizes(link) and "mean" in layer.blobs:
        return _normalisation(layer, link)
    if isinstance(link, _L.Scale):
        return [Part(layer, role, link, "W" if role == "gamma" else "bias/b") for role in layer.blobs]
    return [Part(layer, role, link, layer.array_name(role)) for role in layer.blobs]


def normalizes(link: Any) -> bool:
    """Whether it is a BatchNormalization, or of its like."""
    return bool(link._persistent >= _STATISTICS)


def _normalisation(layer: Layer, link: Any) -> list[Part]:
    """The blobs of a BatchNorm as a BatchNormalization has them: statistics divided by the scale factor."""
    mean, variance = layer.statistics_values()
    made = [Part(layer, "mean", link, "avg_mean", mean), Part(layer, "variance", link, "avg_var", variance)]
    affine = (role for role in ("gamma", "beta") if role in layer.blobs)
    return made + [Part(layer, role, link, role, layer.blobs[role].reshape(-1)) for role in affine]


def suits(layer: Layer, link: Any) -> bool:
    """Whether the link is of the layer's kind, and all blobs of the layer fit its arrays."""
    try:
        return akin(layer, link) and bool([part.shaped() for part in parts(layer, link)])
    except ModelError:
        return False


def akin(layer: Layer, link: Any) -> bool:
    """Whether a link of that class could do what the layer does."""
    if isinstance(link, LayerLink):
        return link.layer.type == layer.type
    if isinstance(link, _DECONVOLUTIONS) or layer.inputs_first:
        return isinstance(link, _DECONVOLUTIONS) and layer.inputs_first
    own = next((role for kind, role in _ROLES if isinstance(link, kind)), "weight")
    role = "mean" if normalizes(link) else own
    if role == "weight" and "W" not in link._params:  # a link of the user's own kind
        return all(layer.array_name(role) in link._params for role in layer.blobs)
    return role in layer.blobs
