"""Which layer of a net goes to which link of a chain that the user wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bridge.chain.matching import akin, normalizes
from bridge.chain.ordering import LinkChoice, by_definition, by_flow
from bridge.chain.renaming import Rename, renamer, unmatched
from bridge.chain.tracing import FAILURES, links_of, sample, trace
from bridge.errors import UsageError, nearest
from bridge.schema import Layer, Net

Links = Mapping[str, Any]


class Pair(NamedTuple):
    """A layer, and the link that it goes to.

    Attributes:
        layer: The layer.
        path: The link's path.
        link: The link; ``None`` where there is none.
        problem: Why there is none.
        candidates: The paths of several links that it could go to as well.
    """

    layer: Layer
    path: str = ""
    link: Any = None
    problem: str = ""
    candidates: tuple[str, ...] = ()


def pairs(net: Net, chain: Any, rename: Rename, by: str, args: Any = None) -> list[Pair]:
    """Each layer that has blobs, with its link.

    Raises:
        UsageError: ``by`` or ``rename`` is wrong, or two layers go to one array.
    """
    layers, links = [layer for layer in net.layers if layer.blobs], links_of(chain)
    if by == "order":
        if rename is not None:
            raise UsageError("rename has no meaning with by='order'")
        found = _by_order(net, layers, chain, links, args)
    elif by == "name":
        found = _by_name(net, layers, links, rename)
    else:
        raise UsageError(f"by='{by}'", expected="'name' or 'order'")
    return _with_affine(net, found)


# -- by name ----------------------------------------------------------------------------------


def _by_name(net: Net, layers: list[Layer], links: Links, rename: Rename) -> list[Pair]:
    names = [layer.name for layer in layers]
    renamed, unused = renamer(rename), unmatched(rename, names)
    if unused:
        raise UsageError(
            f"rename: no layer with blobs is called '{unused[0]}'", where=net.where, hint=nearest(unused[0], names)
        )
    found = [_named(layer, renamed(layer.name), links) for layer in layers]
    for pair in found:
        if pair.link is None and isinstance(rename, Mapping) and pair.layer.name in rename:
            hint = nearest(rename[pair.layer.name], links)
            raise UsageError(f"rename: layer '{pair.layer.name}': {pair.problem}", where=net.where, hint=hint)
    return found


def _named(layer: Layer, wanted: str, links: Links) -> Pair:
    """The link whose path is the wanted name, or that alone ends in it, as Python would write it if need be.

    A chain of that name that has one link for such a layer is as good: ``conv1_1/conv`` for ``conv1_1``.
    """
    if wanted != layer.name:
        wanted = wanted.replace(".", "/").strip("/")
    for name in (wanted, re.sub(r"\W", "_", wanted)):
        within = [path for path in links if akin(layer, links[path]) and _ends(path.rpartition("/")[0], name)]
        found = [name] if name in links else [path for path in links if _ends(path, name)] or within
        if len(found) == 1:
            return Pair(layer, found[0], links[found[0]])
        if found:
            return Pair(layer, problem=f"several links of that name: {', '.join(found)}", candidates=tuple(found))
    return Pair(layer, problem=f"no link '{wanted}'")


def _ends(path: str, name: str) -> bool:
    return bool(path) and (path == name or path.rpartition("/")[2] == name)


# -- by order ---------------------------------------------------------------------------------


def _by_order(net: Net, layers: list[Layer], chain: Any, links: Links, args: Any) -> list[Pair]:
    """By the flow of the data, if the chain runs; else by the order in which layers and links are defined."""
    try:
        run = trace(chain, sample(net, args))
    except FAILURES as error:
        why = f"; the chain does not run on the net's inputs ({type(error).__name__}): args says what to call it with"
        return _ordered(layers, by_definition(layers, links), links, "no link in this order that it fits", why)
    if not run.before:  # it calls no links, as the chain of a net does
        return _ordered(layers, by_definition(layers, links), links, "no link in this order that it fits")
    return _ordered(layers, by_flow(net, layers, run), links, "no link in its place that it fits")


def _ordered(layers: list[Layer], found: list[LinkChoice], links: Links, problem: str, why: str = "") -> list[Pair]:
    return [
        Pair(layer, place.paths[0], links[place.paths[0]])
        if place.sure
        else Pair(layer, problem=_told_apart(layers, found, place, why) or problem, candidates=place.paths)
        for layer, place in zip(layers, found, strict=True)
    ]


def _told_apart(layers: list[Layer], found: list[LinkChoice], place: LinkChoice, why: str) -> str:
    """Which links, or which layers for one link, nothing tells apart; empty where there is no link."""
    if len(place.paths) != 1:
        return f"it could be {' or '.join(place.paths)}{why}" if place.paths else ""
    path = place.paths[0]
    others = [other.name for other, theirs in zip(layers, found, strict=True) if path in theirs.paths]
    return f"{path} could be {' or '.join(others)}{why}" if len(others) > 1 else f"it could be {path} or no link{why}"


# -- normalisation in one link ----------------------------------------------------------------


def _with_affine(net: Net, found: list[Pair]) -> list[Pair]:
    """A Scale without a link of its own goes where the BatchNorm before it went."""
    homes = {id(pair.layer): pair for pair in found}
    made = []
    for pair in found:
        norm = homes.get(id(norm_before(net, pair.layer)))
        if pair.link is None and norm is not None and norm.link is not None and normalizes(norm.link):
            pair = Pair(pair.layer, norm.path, norm.link)
        elif pair.link is None and norm is not None and norm.candidates:
            pair = norm._replace(layer=pair.layer)
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
    return pair.link is not None and normalizes(pair.link) and norm_before(net, pair.layer) is not None
