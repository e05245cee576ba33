"""Freezing: frozen parameters and statistics keep their bits, with any optimizer.

A frozen parameter has another class, which takes no gradient and whose ``update`` does nothing.
So freezing works before and after ``Optimizer.setup``, with any hooks, and in copies and pickles of
the chain; and no gradients are computed below the lowest parameter that is trained. A link of
Chainer's or of the user's that keeps statistics gets another class too, which runs in test mode.

Chainer's own means do less: ``Link.disable_update`` has no effect before ``Optimizer.setup``, which makes new
update rules, and a parameter whose gradient is 0 still moves by weight decay and momentum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

from bridge.chain.build import LayerLink, NetChain
from bridge.chain.functions import chainer
from bridge.chain.names import named_links
from bridge.errors import UsageError


class FrozenParameter(chainer.Parameter):
    """A parameter that no optimizer updates.

    It takes no gradient. Hooks that read or change gradients (:class:`chainer.optimizer_hooks.WeightDecay`,
    ``GradientClipping``) get zeros: what they write is dropped, and the norm of all gradients does not change.
    """

    @property
    def update_rule(self) -> Any:
        """The optimizer's rule for the parameter; it is used again after :func:`thaw`."""
        return self.__dict__["update_rule"]

    @update_rule.setter
    def update_rule(self, rule: Any) -> None:
        self.__dict__["update_rule"] = rule
        if rule is not None:
            rule.serialize = _Serialize(rule)

    def update(self) -> None:
        """Change nothing."""

    def zerograd(self) -> None:
        """The same as :meth:`cleargrad`."""
        self.cleargrad()

    def _get_grad(self) -> Any:
        grad = super()._get_grad()
        return None if grad is None else self.xp.zeros_like(self.array)

    def _set_grad(self, g: Any, **options: Any) -> None:
        zeros = None if g is None else self.xp.broadcast_to(self.xp.zeros((), g.dtype), g.shape)  # no memory
        super()._set_grad(zeros, **options)

    def __copy__(self) -> Any:
        return _frozen(super().__copy__())

    def __reduce__(self) -> Any:
        return _recover, (super().__reduce__(),)


class _Serialize:
    """Serializes an update rule that may have no state, in which case a snapshot holds none to load."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def __call__(self, serializer: Any) -> None:
        try:
            type(self.rule).serialize(self.rule, serializer)
        except KeyError:
            self.rule._state = None


class _Steady:
    """A link in test mode: it reads its statistics and does not change them."""

    base: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with chainer.using_config("train", False):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with chainer.using_config("train", False):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new_steady, (self.base,), *reduced[2:])


@functools.cache
def _steady(base: Any) -> Any:
    """The class of a link of class ``base`` whose statistics are frozen."""
    return type(base.__name__, (_Steady, base), {"__module__": base.__module__, "__doc__": base.__doc__, "base": base})


def _new_steady(base: Any) -> Any:
    cls = _steady(base)
    return cls.__new__(cls)


class DelGradient:
    """An optimizer hook that freezes its targets; for scripts that add a hook of this name.

    It freezes its targets at the first update. Running statistics have changed once by then.
    Remove the hook before :func:`thaw`.

    Args:
        targets: Parts of paths, such as ``conv1``; parameters and links whose path contains one are frozen.
    """

    name = "DelGradient"
    call_for_each_param = False
    timing = "pre"

    def __init__(self, targets: Iterable[str]) -> None:
        self.targets = tuple(targets)

    def __call__(self, optimizer: Any) -> None:
        """Freeze the targets, before the optimizer updates them."""
        for path, param in optimizer.target.namedparams():
            if self._names(path):
                _frozen(param)
        for path, link in optimizer.target.namedlinks():
            if self._names(path):
                _keep_statistics(link)

    def _names(self, path: str) -> bool:
        return any(target in path or target in unquote(path) for target in self.targets)


def freeze(chain: Any, *patterns: str) -> list[str]:
    """Freeze layers: their parameters and running statistics do not change until :func:`thaw`.

    Args:
        chain: A chain made by :func:`~bridge.chain.build.build_chain`, or any ``chainer.Link``.
        patterns: Names of layers, or patterns such as ``conv*``. For a chain of your own: paths of links or
            parameters, such as ``block/conv1`` or ``conv1/W``. The end of a path will do: ``conv1`` also finds
            ``block/conv1`` where no path is ``conv1``.

    Returns:
        The names of the frozen layers.

    Raises:
        UsageError: A pattern matches nothing, or no pattern is given.
    """
    return _change(chain, patterns, _frozen, _keep_statistics)


def thaw(chain: Any, *patterns: str) -> list[str]:
    """Let frozen layers be trained again: the opposite of :func:`freeze`.

    Args:
        chain: The same as for :func:`freeze`.
        patterns: The same as for :func:`freeze`.

    Returns:
        The names of the thawed layers.

    Raises:
        UsageError: A pattern matches nothing, or no pattern is given.
    """
    return _change(chain, patterns, _thawed, _move_statistics)


def is_frozen(param: Any) -> bool:
    """Whether a ``chainer.Parameter`` is frozen."""
    return isinstance(param, FrozenParameter)


def _frozen(param: Any) -> Any:
    if is_frozen(param):
        return param
    param.cleargrad()
    _become(param, FrozenParameter, requires_grad=False)
    param.update_rule = param.update_rule  # the setter of the new class adapts the rule
    return param


def _thawed(param: Any) -> Any:
    if is_frozen(param):
        _become(param, chainer.Parameter, requires_grad=True)
        vars(param.update_rule or param).pop("serialize", None)
    return param


def _become(param: Any, kind: type, *, requires_grad: bool) -> None:
    param.__class__ = kind
    param._requires_grad = requires_grad
    param.node._requires_grad = requires_grad  # the graph reads the node's copy


def _recover(reduced: tuple[Any, ...]) -> Any:
    make, arguments = reduced
    return _frozen(make(*arguments))


def _keep_statistics(link: Any) -> None:
    if isinstance(link, LayerLink):
        link.frozen = True
    elif link._persistent and not isinstance(link, _Steady):
        base: Any = type(link)
        link.__class__ = _steady(base)


def _move_statistics(link: Any) -> None:
    if isinstance(link, LayerLink):
        link.frozen = False
    elif isinstance(link, _Steady):
        link.__class__ = link.base


@dataclass
class _Target:
    """The parameters and the links with statistics that a name stands for."""

    params: list[Any] = field(default_factory=list)
    links: list[Any] = field(default_factory=list)


def _change(chain: Any, patterns: Iterable[str], param: Callable[[Any], Any], link: Callable[[Any], None]) -> list[str]:
    """Call ``param`` and ``link`` for the parameters and links that the patterns match; returns the layers' names."""
    layers = _layers(chain) if isinstance(chain, NetChain) else _links(chain)
    if not patterns:
        raise UsageError("no layer is named", hint="'*' stands for all layers")
    chosen: dict[str, _Target] = {}
    for pattern in patterns:
        matches = _matching(layers, pattern) or _matching(_parameters(chain), pattern)
        if not matches:
            raise UsageError(f"no layer with parameters is called '{pattern}'", hint=f"layers: {', '.join(layers)}")
        chosen.update(matches)
    for target in chosen.values():
        for each in target.params:
            param(each)
        for holder in target.links:
            link(holder)
    return [name for name in chosen if name]


def _matching(targets: dict[str, _Target], pattern: str) -> dict[str, _Target]:
    """The targets of that name, else those that match the pattern, else those whose path ends with a match."""
    if pattern in targets:
        return {pattern: targets[pattern]}
    for form in (pattern, f"*/{pattern}"):
        if matches := {name: target for name, target in targets.items() if fnmatchcase(name, form)}:
            return matches
    return {}


def _layers(chain: NetChain) -> dict[str, _Target]:
    """The layers of a built chain that have arrays, including arrays that they share with another layer."""
    targets: dict[str, _Target] = {}
    for index, name in enumerate(chain.layer_names()):
        for role in chain.roles(index):
            array = chain.array(index, role)
            target = targets.setdefault(name, _Target())
            if isinstance(array, chainer.Parameter):
                target.params.append(array)
            else:
                target.links.append(chain.holder(index, role))
    return targets


def _links(chain: Any) -> dict[str, _Target]:
    """The links that have arrays, by path; the path of the chain itself is empty."""
    targets: dict[str, _Target] = {}
    for path, link in named_links(chain):
        own = [vars(link)[name] for name in link._params]
        within = list(link.links()) if path else [link]
        params = list(link.params()) if path else own
        if params or any(part._persistent for part in within):
            targets[path] = _Target(params, within)
    return targets


def _parameters(chain: Any) -> dict[str, _Target]:
    """Each parameter on its own, by path."""
    return {
        f"{path}/{name}".lstrip("/"): _Target([vars(link)[name]])
        for path, link in named_links(chain)
        for name in link._params
    }
