"""Which layers are frozen: what the patterns name, and the normalisations that belong to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from bridge.errors import UsageError, nearest
from bridge.schema import Layer, Net

_SHOWN = 4
"""Names of layers in a list before it is cut."""


@dataclass(frozen=True)
class Selection:
    """What a run freezes, as the options say it.

    Attributes:
        freeze: Patterns of the names of layers to freeze, such as ``conv*``.
        train: Patterns of the names of layers to train; all others are frozen.
        train_head: Whether new layers are trained, and all others are frozen.
        exactly: Whether normalisations do not follow the layers that they belong to, and new layers may be frozen
            by a pattern.
    """

    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    train_head: bool = False
    exactly: bool = False

    def __bool__(self) -> bool:
        return bool(self.freeze or self.train or self.train_head)


class Frozen(NamedTuple):
    """The layers that are frozen.

    Attributes:
        names: In the net's order.
        notes: Remarks for the user, one line each.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...]


def frozen_layers(net: Net, wish: Selection, new: Collection[str]) -> Frozen:
    """The layers that a run freezes.

    A normalisation (BatchNorm, Scale) belongs to the layers that its input comes from: it is frozen where all of them
    are. One that reads the images themselves belongs to the layers that read it.

    Args:
        net: The net.
        wish: What the options say.
        new: Names of layers whose parameters come from fillers, such as a new head.

    Raises:
        UsageError: A pattern matches no layer with parameters, the options contradict each other, or there is no new
            layer for ``train_head``.
    """
    if wish.freeze and (wish.train or wish.train_head):
        raise UsageError("--freeze with --train or --train-head", hint="--train freezes all that it does not name")
    if wish.train_head and not new:
        hint = "--head LAYER=5 gives a layer new outputs; --train LAYER trains a layer as it is"
        raise UsageError("--train-head: the net has no new layer", where=net.where, hint=hint)
    if not wish:
        return Frozen((), ())
    owned = dict.fromkeys(layer.name for layer in net.layers if has_parameters(layer))
    if wish.freeze:
        named, notes = _named(net, wish, new)
        frozen = set(named)
    else:
        named = [*matching(net, wish.train), *(new if wish.train_head else ())]
        frozen, notes = set(owned) - set(named), []
    if not wish.exactly:
        followers = {layer.name for layer in net.layers if layer.adjusts} & set(owned) - set(named) - set(new)
        _follow(net, frozen, followers)
        joined = [name for name in owned if name in followers & frozen]
        if wish.freeze and joined:
            notes.append(f"frozen with what they normalise: {some(joined)}; --freeze-exactly leaves them trained")
    return Frozen(tuple(name for name in owned if name in frozen), tuple(notes))


def _named(net: Net, wish: Selection, new: Collection[str]) -> tuple[list[str], list[str]]:
    """The layers that the patterns freeze, and remarks; a pattern for old layers leaves new ones trained."""
    chosen: dict[str, None] = {}
    spared: dict[str, str] = {}
    for pattern in wish.freeze:
        found = matching(net, [pattern])
        old = [name for name in found if name not in new]
        if not wish.exactly and old and pattern not in found:
            spared.update((name, pattern) for name in found if name in new)
            found = old
        chosen.update(dict.fromkeys(found))
    notes = [
        f"'{pattern}' leaves the new layer '{name}' trained; --freeze {name} freezes it"
        for name, pattern in spared.items()
        if name not in chosen
    ]
    still = [name for name in chosen if name in new]
    if still:
        notes.append(f"new parameters are frozen, and stay as their fillers made them: {', '.join(still)}")
    return list(chosen), notes


def _follow(net: Net, frozen: set[str], followers: Collection[str]) -> None:
    """Freeze the followers whose owners are all frozen, and no other follower."""
    frozen -= set(followers)
    sources = _sources(net)
    for index, layer in enumerate(net.layers):
        if layer.name not in followers:
            continue
        owners = {net.layers[i].name for value in net.flow.reads[index] for i in sources[value.layer]}
        if owners <= frozen and (owners or _users(net, index, sources) <= frozen):
            frozen.add(layer.name)


def _sources(net: Net) -> dict[int, frozenset[int]]:
    """For each layer the nearest layers with parameters that its tops come from: itself, where it has any."""
    found: dict[int, frozenset[int]] = {-1: frozenset()}
    for index, layer in enumerate(net.layers):
        before = (found[value.layer] for value in net.flow.reads[index])
        found[index] = frozenset([index]) if has_parameters(layer) else frozenset().union(*before)
    return found


def _users(net: Net, start: int, sources: dict[int, frozenset[int]]) -> set[str]:
    """The nearest layers with parameters that read what a layer computes, normalisations left out."""
    reached, users = {start}, set()
    for index, layer in enumerate(net.layers[start + 1 :], start + 1):
        if any(sources[value.layer] & reached for value in net.flow.reads[index]):
            if layer.adjusts and has_parameters(layer):
                reached.add(index)
            elif has_parameters(layer):
                users.add(layer.name)
    return users


def matching(net: Net, patterns: Iterable[str]) -> list[str]:
    """Names of the layers with parameters that match the patterns, such as ``conv*``.

    Raises:
        UsageError: A pattern matches no layer with parameters.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [layer.name for layer in net.layers if fnmatchcase(layer.name, pattern) and has_parameters(layer)]
        if not found:
            hint = nearest(pattern, net.layer_names)
            raise UsageError(f"no layer with parameters is called '{pattern}'", where=net.where, hint=hint)
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def has_parameters(layer: Layer) -> bool:
    """Whether the layer has blobs, stored ones or ones that its fillers make."""
    return bool(layer.blobs) or bool(layer.roles(0))


def some(names: Iterable[str]) -> str:
    """Some of the names: ``conv1, conv2, conv3 ... fc7 (12 layers)``."""
    every = list(names)
    if len(every) <= _SHOWN + 1:
        return ", ".join(every)
    return f"{', '.join(every[: _SHOWN - 1])} ... {every[-1]} ({len(every)} layers)"
