"""Which link of a chain takes the result of which other: the chain is run once, and its calls are recorded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bridge.chain.functions import chainer
from bridge.chain.names import named_links
from bridge.errors import BridgeError
from bridge.schema import Net

INPUT = ""
"""Stands for the chain's input among the paths that a call takes its values from."""
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, BridgeError, LookupError, NotImplementedError, RuntimeError,
    TypeError, ValueError, chainer.utils.type_check.InvalidType,
)  # fmt: skip
"""What a chain that is called with the wrong arguments may raise."""


class LinkCall(NamedTuple):
    """One call of a link.

    Attributes:
        path: The link's path.
        inputs: The variables that it got.
        outputs: The variables that it returned.
    """

    path: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


class Trace(NamedTuple):
    """A run of a chain.

    Attributes:
        links: The links that were called, by path, with the sizes that they have in the run.
        before: For each of them, in the order of the calls, the links whose results it takes, directly or
            through functions; :data:`INPUT` for the chain's input.
        calls: Every call.
        result: What the chain returned.
    """

    links: dict[str, Any]
    before: dict[str, frozenset[str]]
    calls: list[LinkCall]
    result: Any


def links_of(chain: Any) -> dict[str, Any]:
    """The links that have arrays of their own, by path, in the order of their definition."""
    return {path: link for path, link in named_links(chain) if link._params or link._persistent}


def sample(net: Net, args: Any = None) -> tuple[Any, ...]:
    """What to call a chain with: ``args``, or zeros in the shapes of the net's inputs, one image of each.

    Raises:
        ValueError: The net does not tell the shapes of its inputs.
    """
    if args is not None:
        return tuple(args) if isinstance(args, (list, tuple)) else (args,)
    shapes = list(net.inputs.values())
    if not shapes or None in shapes:
        raise ValueError("the net does not tell the shape of its input")
    return tuple(np.zeros((1, *shape[1:]), np.float32) for shape in shapes if shape is not None)


def trace(chain: Any, args: Iterable[Any], method: str = "") -> Trace:
    """Run a copy of a chain in test mode; the chain itself keeps its state, and open sizes stay open.

    Arrays are not copied. No random number is drawn for parameters without a size.

    Args:
        chain: Any :class:`chainer.Link`.
        args: What to call it with; arrays of NumPy go to the chain's device.
        method: The method to call, where it is not the chain itself.

    Raises:
        Exception: Whatever the chain raises, see :data:`FAILURES`.
    """
    twin = _copy(chain)
    links = _leaves(links_of(twin))
    hook = _Calls({id(link): path for path, link in links.items()})
    sent = [twin.device.send(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    given = [chainer.Variable(arg) if _is_float(arg) else arg for arg in sent]
    state = np.random.get_state()
    try:
        with (
            chainer.using_config("train", False),
            chainer.using_config("enable_backprop", True),
            chainer.using_device(twin.device),
            hook,
        ):
            result = (getattr(twin, method) if method else twin)(*given)
    finally:
        np.random.set_state(state)
    before = _before(hook.calls, [value for value in given if isinstance(value, chainer.Variable)])
    return Trace({path: links[path] for path in before}, before, hook.calls, result)


def _is_float(arg: Any) -> bool:
    return getattr(getattr(arg, "dtype", None), "kind", "") == "f" and not isinstance(arg, chainer.Variable)


def _copy(chain: Any) -> Any:
    """A copy that has the chain's own arrays, read-only; parameters without a size get zeros."""
    shared: dict[int, Any] = {}
    for link in chain.links():
        for value in vars(link).values():
            held = _held(value) if isinstance(value, chainer.Parameter) else [value]
            for own in held:
                if isinstance(own, np.ndarray):
                    shared[id(own)] = own.view()
                    shared[id(own)].flags.writeable = False
                elif isinstance(value, chainer.Parameter) or isinstance(own, chainer.get_array_types()):
                    shared[id(own)] = own
    twin = copy.deepcopy(chain, shared)
    for param in twin.params(include_uninit=True):
        if not param.is_initialized:
            param.initializer = chainer.initializers.Zero(getattr(param.initializer, "dtype", None))
    return twin


def _held(param: Any) -> list[Any]:
    """What a parameter refers to; a copy of it refers to the same."""
    values = (param.array, vars(param).get("_grad"), param.initializer, param.update_rule)
    return [value for value in values if value is not None]


def _leaves(links: Mapping[str, Any]) -> dict[str, Any]:
    """The links that compute with arrays of their own: those without links below them, and a Scale with its Bias."""
    scales = [path for path, link in links.items() if isinstance(link, chainer.links.Scale)]
    return {
        path: link
        for path, link in links.items()
        if (path in scales or not any(_below(other, path) for other in links))
        and not any(_below(path, scale) for scale in scales)
    }


def _below(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}/"))


class _Calls(chainer.LinkHook):
    """Records the calls of some links."""

    name = "bridge.calls"

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.paths = paths
        self.calls: list[LinkCall] = []

    def forward_postprocess(self, args: Any) -> None:
        """Called by Chainer behind each call of a link."""
        path = self.paths.get(id(args.link))
        if path is not None:
            inputs = tuple(_variables((*args.args, *args.kwargs.values())))
            self.calls.append(LinkCall(path, inputs, tuple(_variables(args.out))))


def _variables(values: Any) -> Iterator[Any]:
    """All variables in nested tuples, lists and dicts."""
    if isinstance(values, chainer.Variable):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _variables(value)
    elif isinstance(values, Mapping):
        yield from _variables(tuple(values.values()))


def _before(calls: list[LinkCall], given: list[Any]) -> dict[str, frozenset[str]]:
    """What the first call of each link takes; a variable that nothing made counts as the input."""
    made = {id(variable.node): INPUT for variable in given}
    before: dict[str, frozenset[str]] = {}
    for call in calls:
        if call.path not in before:
            before[call.path] = frozenset(_origins(call.inputs, made)) or frozenset({INPUT})
        made.update((id(variable.node), call.path) for variable in call.outputs)
    return before


def _origins(variables: Iterable[Any], made: Mapping[int, str]) -> Iterator[str]:
    waiting, seen = [variable.node for variable in variables], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) in made:
            yield made[id(node)]
        elif node.creator_node is not None:
            waiting += node.creator_node.inputs
