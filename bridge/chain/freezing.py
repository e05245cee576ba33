"""Freezing that holds: frozen parameters and statistics keep their bits, whatever optimizer runs.

A frozen parameter changes its class to one that takes no gradient and whose ``update``
does nothing. So it does not matter whether the optimizer was set up before or after, what
hooks it has, or whether the chain is copied or pickled in between; and nothing is
back-propagated below the lowest parameter that is trained. A link of Chainer's or the
user's that keeps statistics changes its class to one that runs in test mode.
(``Link.disable_update`` before ``Optimizer.setup`` has no effect, since setup makes new
update rules; a gradient set to zero still moves with weight decay and momentum.)
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

    It takes no gradient. Hooks that want one to read or to change (:class:`chainer.optimizer_hooks.WeightDecay`,
    ``GradientClipping``) get zeros, so that what they do to it leaves no trace, in the norm of all gradients either.
    """

    @property
    def update_rule(self) -> Any:
        """The optimizer's rule for the parameter, which waits until it is thawed."""
        return self.__dict__["update_rule"]

    @update_rule.setter
    def update_rule(self, rule: Any) -> None:
        self.__dict__["update_rule"] = rule
        if rule is not None:
            rule.serialize = _Serialize(rule)

    def update(self) -> None:
        """Do nothing."""

    def zerograd(self) -> None:
        """Do as :meth:`cleargrad`."""
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
    """Serializes an update rule that may never have had a state: a snapshot then has none to load."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def __call__(self, serializer: Any) -> None:
        try:
            type(self.rule).serialize(self.rule, serializer)
        except KeyError:
            self.rule._state = None


class _Steady:
    """A link in test mode: it reads its statistics and leaves them as they are."""

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
    """The optimizer hook of the article, and one that really stops the update.

    It freezes what it names at the first update; running statistics have moved once by then.
    Remove the hook before :func:`thaw`.

    Args:
        targets: Parameters and links whose path holds one of these as a part are frozen.
    """

    name = "DelGradient"
    call_for_each_param = False
    timing = "pre"

    def __init__(self, targets: Iterable[str]) -> None:
        self.targets = tuple(targets)

    def __call__(self, optimizer: Any) -> None:
        """Freeze the parameters before the optimizer gets to them."""
        for path, param in optimizer.target.namedparams():
            if self._names(path):
                _frozen(param)
        for path, link in optimizer.target.namedlinks():
            if self._names(path):
                _keep_statistics(link)

    def _names(self, path: str) -> bool:
        return any(target in path or target in unquote(path) for target in self.targets)


def freeze(chain: Any, *patterns: str) -> list[str]:
    """Freeze layers: their parameters and their running statistics stay as they are.

    Args:
        chain: Made by :func:`~bridge.chain.build.build_chain`, or any link of Chainer's.
        patterns: Names of layers (for a chain of one's own: paths of links or parameters, such as ``block/conv1``
            or ``conv1/W``), or patterns such as ``conv*``. What is no whole name may be the end of one.

    Returns:
        The names of the frozen layers.

    Raises:
        UsageError: A pattern chooses nothing, or there is none.
    """
    return _change(chain, patterns, _frozen, _keep_statistics)


def thaw(chain: Any, *patterns: str) -> list[str]:
    """Let frozen parameters learn again: the opposite of :func:`freeze`.

    Args:
        chain: Any :class:`chainer.Link`.
        patterns: As of :func:`freeze`.

    Returns:
        The names of the thawed layers.
    """
    return _change(chain, patterns, _thawed, _move_statistics)


def is_frozen(param: Any) -> bool:
    """Whether a parameter is frozen."""
    return isinstance(param, FrozenParameter)


def _frozen(param: Any) -> Any:
    if is_frozen(param):
        return param
    param.cleargrad()
    _become(param, FrozenParameter, requires_grad=False)
    param.update_rule = param.update_rule  # as a frozen one's
    return param


def _thawed(param: Any) -> Any:
    if is_frozen(param):
        _become(param, chainer.Parameter, requires_grad=True)
        vars(param.update_rule or param).pop("serialize", None)
    return param


def _become(param: Any, kind: type, *, requires_grad: bool) -> None:
    param.__class__ = kind
    param._requires_grad = requires_grad
    param.node._requires_grad = requires_grad  # the graph asks the node, which has a copy


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
    """What a name stands for: parameters, and links with statistics."""

    params: list[Any] = field(default_factory=list)
    links: list[Any] = field(default_factory=list)


def _change(chain: Any, patterns: Iterable[str], param: Callable[[Any], Any], link: Callable[[Any], None]) -> list[str]:
    layers = _layers(chain) if isinstance(chain, NetChain) else _links(chain)
    if not patterns:
        raise UsageError("no layer is named", hint="'*' is all of them")
    chosen: dict[str, _Target] = {}
    for pattern in patterns:
        found = _matching(layers, pattern) or _matching(_parameters(chain), pattern)
        if not found:
            raise UsageError(f"no layer with parameters is called '{pattern}'", hint=f"layers: {', '.join(layers)}")
        chosen.update(found)
    for target in chosen.values():
        for each in target.params:
            param(each)
        for holder in target.links:
            link(holder)
    return [name for name in chosen if name]


def _matching(targets: dict[str, _Target], pattern: str) -> dict[str, _Target]:
    if pattern in targets:
        return {pattern: targets[pattern]}
    for wanted in (pattern, f"*/{pattern}"):
        if found := {name: target for name, target in targets.items() if fnmatchcase(name, wanted)}:
            return found
    return {}


def _layers(chain: NetChain) -> dict[str, _Target]:
    """The layers of a built chain that have arrays, also where these are another layer's."""
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
    """The links that have arrays, by path; the name of the chain itself, for arrays of its own, is empty."""
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
