"""Freezing that holds: frozen parameters get no gradient, and no optimizer can move them.

A frozen parameter changes its class to one that asks for no gradient and whose
``update`` does nothing. So it does not matter whether the optimizer was set up before or
after, what hooks it has, or whether the chain is copied or pickled in between; and
nothing is back-propagated below the lowest parameter that is trained.
(``Link.disable_update`` before ``Optimizer.setup`` has no effect, since setup makes new
update rules; a gradient set to zero still moves with weight decay and momentum.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from bridge.chain.functions import chainer
from bridge.errors import UsageError


class FrozenParameter(chainer.Parameter):
    """A parameter that gets no gradient and that no optimizer updates."""

    def update(self) -> None:
        """Do nothing."""

    def __copy__(self) -> FrozenParameter:
        return _frozen(super().__copy__())

    def __reduce__(self) -> Any:
        return _recover, (super().__reduce__(),)


class FrozenBatchNormalization(chainer.links.BatchNormalization):
    """Chainer's own link with its statistics kept, in training mode too."""

    def forward(self, x: Any, **kwargs: Any) -> Any:
        """Normalise by the running statistics."""
        with chainer.using_config("train", False):
            return super().forward(x, **kwargs)


class DelGradient:
    """The article's optimizer hook, and one that really stops the update.

    Args:
        targets: Parameters whose path holds one of these as a part are frozen.
    """

    name = "DelGradient"
    call_for_each_param = False
    timing = "pre"

    def __init__(self, targets: Iterable[str]) -> None:
        self.targets = tuple(targets)

    def __call__(self, optimizer: Any) -> None:
        """Freeze the parameters before the optimizer gets to them."""
        for path, param in optimizer.target.namedparams():
            if not is_frozen(param) and any(target in path for target in self.targets):
                _frozen(param)


def freeze(chain: Any, *patterns: str) -> list[str]:
    """Freeze layers: their parameters and their running statistics stay as they are.

    Args:
        chain: Made by :func:`~bridge.chain.build.build_chain`, or any Chainer chain.
        patterns: Names of layers (of links, by their path), or patterns such as ``conv*``.

    Returns:
        The names of the frozen layers.

    Raises:
        UsageError: A pattern chooses no layer.
    """
    return _change(chain, patterns, _freeze)


def thaw(chain: Any, *patterns: str) -> list[str]:
    """The opposite of :func:`freeze`."""
    return _change(chain, patterns, _thaw)


def is_frozen(param: Any) -> bool:
    """Whether a parameter is frozen."""
    return isinstance(param, FrozenParameter)


def _frozen(param: Any) -> Any:
    param.cleargrad()
    return _become(param, FrozenParameter, requires_grad=False)


def _become(param: Any, kind: type, *, requires_grad: bool) -> Any:
    param.__class__ = kind
    param._requires_grad = requires_grad
    param.node._requires_grad = requires_grad  # the graph asks the node, which has a copy
    return param


def _recover(reduced: tuple[Any, ...]) -> Any:
    return _frozen(reduced[0](*reduced[1]))


def _freeze(link: Any) -> None:
    for param in link.params():
        if not is_frozen(param):
            _frozen(param)
    for child in link.links():
        child.frozen = True
        if type(child) is chainer.links.BatchNormalization:
            child.__class__ = FrozenBatchNormalization


def _thaw(link: Any) -> None:
    for param in link.params():
        if is_frozen(param):
            _become(param, chainer.Parameter, requires_grad=True)
    for child in link.links():
        child.frozen = False
        if type(child) is FrozenBatchNormalization:
            child.__class__ = chainer.links.BatchNormalization


def _change(chain: Any, patterns: tuple[str, ...], change: Callable[[Any], None]) -> list[str]:
    links = _named(chain)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in links if fnmatchcase(name, pattern)]
        if not found:
            raise UsageError(f"no layer with parameters is called '{pattern}'", hint=f"layers: {', '.join(links)}")
        chosen.update(dict.fromkeys(found))
    for name in chosen:
        change(links[name])
    return list(chosen)


def _named(chain: Any) -> dict[str, Any]:
    """The links that can be frozen, by the layer's name or by the path below the chain."""
    from bridge.chain.names import unescape

    built = hasattr(chain, "net_outputs")
    return {
        unescape(path[1:]) if built else path[1:]: link
        for path, link in chain.namedlinks(skipself=True)
        if any(True for _ in link.params())
    }
