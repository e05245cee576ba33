"""Which blob of a net meets which array of a chain that the user wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bridge.chain.build import LayerLink
from bridge.chain.functions import chainer
from bridge.chain.names import named_links
from bridge.chain.renaming import Rename, renamer, unmatched
from bridge.errors import ModelError, UsageError, nearest
from bridge.schema import Layer, Net, Shape, count, times
from bridge.schema.groups import unspread_groups
from bridge.schema.initializer import Initializer

Links = Mapping[str, Any]
_L = chainer.links
_STATISTICS = {"avg_mean", "avg_var"}
_ROLES = ((_L.PReLU, "slope"), (_L.Scale, "gamma"), (_L.Bias, "bias"))
"""The role that a link of that class is for, where it is not the weight."""
_DECONVOLUTIONS = (_L.Deconvolution2D, _L.DeconvolutionND)


class Pair(NamedTuple):
    """A layer, and the link that it goes to; ``problem`` where there is none."""

    layer: Layer
    path: str
    link: Any
    problem: str = ""


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
                target.initialize(values.shape)
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
        return np.array(chainer.backends.cuda.to_cpu(target))

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
    if _normalizes(link) and "mean" in layer.blobs:
        return _normalisation(layer, link)
    if isinstance(link, _L.Scale):
        return [Part(layer, role, link, "W" if role == "gamma" else "bias/b") for role in layer.blobs]
    return [Part(layer, role, link, layer.array_name(role)) for role in layer.blobs]


def _normalizes(link: Any) -> bool:
    """Whether it is a BatchNormalization, or of its like."""
    return bool(link._persistent >= _STATISTICS)


def _normalisation(layer: Layer, link: Any) -> list[Part]:
    """The blobs of a BatchNorm as a BatchNormalization has them: statistics divided by the scale factor."""
    mean, variance = layer.statistics_values()
    made = [Part(layer, "mean", link, "avg_mean", mean), Part(layer, "variance", link, "avg_var", variance)]
    affine = (role for role in ("gamma", "beta") if role in layer.blobs)
    return made + [Part(layer, role, link, role, layer.blobs[role].reshape(-1)) for role in affine]


# -- pairs ------------------------------------------------------------------------------------


def links_of(chain: Any) -> dict[str, Any]:
    """The links that have arrays of their own, by path, in the order of their definition."""
    return {path: link for path, link in named_links(chain) if link._params or link._persistent}


def pairs(net: Net, links: Links, rename: Rename, by: str) -> list[Pair]:
    """Each layer that has blobs, with its link.

    Raises:
        UsageError: ``by`` or ``rename`` is wrong, or two layers go to one array.
    """
    layers = [layer for layer in net.layers if layer.blobs]
    if by == "order":
        if rename is not None:
            raise UsageError("rename has no meaning with by='order'")
        found = _by_order(layers, links)
    elif by == "name":
        found = _by_name(net, layers, links, rename)
    else:
        raise UsageError(f"by='{by}'", expected="'name' or 'order'")
    return _with_affine(net, found)


def _by_name(net: Net, layers: list[Layer], links: Links, rename: Rename) -> list[Pair]:
    names = [layer.name for layer in layers]
    renamed, unused = renamer(rename), unmatched(rename, names)
    if unused:
        raise UsageError(
            f"rename: no layer with blobs is called '{unused[0]}'", where=net.where, hint=nearest(unused[0], names)
        )
    tails: dict[str, list[str]] = {}
    for path in links:
        tails.setdefault(path.rpartition("/")[2], []).append(path)
    found = [_named(layer, renamed(layer.name), links, tails) for layer in layers]
    for pair in found:
        if pair.link is None and isinstance(rename, Mapping) and pair.layer.name in rename:
            hint = nearest(rename[pair.layer.name], links)
            raise UsageError(f"rename: layer '{pair.layer.name}': {pair.problem}", where=net.where, hint=hint)
    return found


def _named(layer: Layer, wanted: str, links: Links, tails: Mapping[str, list[str]]) -> Pair:
    """The link whose path is the wanted name, or that alone ends in it, as Python would write it if need be."""
    if wanted != layer.name:
        wanted = wanted.replace(".", "/").strip("/")
    for name in (wanted, re.sub(r"\W", "_", wanted)):
        found = [name] if name in links else tails.get(name, [])
        if len(found) == 1:
            return Pair(layer, found[0], links[found[0]])
        if found:
            return Pair(layer, "", None, f"several links of that name: {', '.join(found)}")
    return Pair(layer, "", None, f"no link '{wanted}'")


def _by_order(layers: list[Layer], links: Links) -> list[Pair]:
    """As many layers as possible, each with a later link than the one before and one that all its blobs fit."""
    paths = list(links)
    fits = [[_fits(layer, links[path]) for path in paths] for layer in layers]
    best = [[0] * (len(paths) + 1) for _ in range(len(layers) + 1)]
    for i in reversed(range(len(layers))):
        for j in reversed(range(len(paths))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], fits[i][j] + best[i + 1][j + 1] if fits[i][j] else 0)
    found, i, j = [], 0, 0
    while i < len(layers):
        if best[i][j] and fits[i][j] and best[i][j] == 1 + best[i + 1][j + 1]:
            found.append(Pair(layers[i], paths[j], links[paths[j]]))
            i, j = i + 1, j + 1
        elif best[i][j] and best[i][j] == best[i][j + 1]:
            j += 1
        else:
            found.append(Pair(layers[i], "", None, "no link in this order that it fits"))
            i += 1
    return found


def _fits(layer: Layer, link: Any) -> bool:
    try:
        return _akin(layer, link) and bool([part.shaped() for part in parts(layer, link)])
    except ModelError:
        return False


def _akin(layer: Layer, link: Any) -> bool:
    """Whether a link of that class could do what the layer does."""
    if isinstance(link, LayerLink):
        return link.layer.type == layer.type
    if isinstance(link, _DECONVOLUTIONS) or layer.inputs_first:
        return isinstance(link, _DECONVOLUTIONS) and layer.inputs_first
    own = next((role for kind, role in _ROLES if isinstance(link, kind)), "weight")
    role = "mean" if _normalizes(link) else own
    return role in layer.blobs


def _with_affine(net: Net, found: list[Pair]) -> list[Pair]:
    """A Scale without a link of its own goes where the BatchNorm before it went."""
    homes = {id(pair.layer): pair for pair in found}
    made = []
    for pair in found:
        norm = homes.get(id(norm_before(net, pair.layer)))
        if pair.link is None and norm is not None and norm.link is not None and _normalizes(norm.link):
            pair = Pair(pair.layer, norm.path, norm.link)
        made.append(pair)
    return made


def norm_before(net: Net, layer: Layer) -> Layer | None:
    """The normalisation whose result a layer of gamma and beta takes, so that both are one in Chainer."""
    if not layer.rescales or "gamma" not in layer.blobs:
        return None
    writer = net.flow.reads[net.layers.index(layer)][0].layer
    return net.layers[writer] if writer >= 0 and net.layers[writer].normalises else None


def is_affine(net: Net, pair: Pair) -> bool:
    """Whether a Scale's blobs go into the BatchNormalization of the BatchNorm before it."""
    return pair.link is not None and _normalizes(pair.link) and norm_before(net, pair.layer) is not None
