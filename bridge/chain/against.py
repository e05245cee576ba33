"""A chain of the user's beside the net that it is meant to compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bridge.chain.build import NetChain
from bridge.chain.devices import to_host
from bridge.chain.functions import chainer
from bridge.chain.pairing import pairs
from bridge.chain.tracing import FAILURES, Trace, trace
from bridge.errors import UsageError
from bridge.schema import Net


def run_of(call: Any, chain: Any, args: Sequence[np.ndarray], where: str) -> Trace:
    """Run a copy of a chain, or the same method of it, in test mode.

    Args:
        call: The chain, or a method of it.
        chain: The chain.
        args: The net's inputs.
        where: The net, for the error.

    Raises:
        UsageError: It does not run on them.
    """
    try:
        return trace(chain, args, method="" if call is chain else call.__name__)
    except FAILURES as error:
        raise UsageError(
            f"{type(chain).__name__} does not run on the net's inputs: {type(error).__name__}: {error}",
            where=where,
            hint="give the method that takes them, such as against=model.features",
        ) from None


def layers_of_links(net: Net, chain: Any) -> dict[str, list[tuple[int, int]]]:
    """By the path of each link the layers that it stands for, first and last; by name, or else by order."""
    found = [pair for pair in pairs(net, chain, None, "name") if pair.link is not None]
    found = found or [pair for pair in pairs(net, chain, None, "order") if pair.link is not None]
    own = {id(layer): index for index, layer in enumerate(net.layers)}
    homes: dict[str, list[int]] = {}
    for pair in found:
        homes.setdefault(pair.path, []).append(own[id(pair.layer)])
    return {path: [(min(indices), max(indices))] for path, indices in homes.items()}


def built_tops(chain: NetChain, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
    """What each layer of a built chain computes in test mode."""
    values: dict[str, Any] = {name: chainer.as_variable(chain.device.send(array)) for name, array in inputs.items()}
    with chainer.using_config("train", False), chainer.no_backprop_mode(), chainer.using_device(chain.device):
        for names, (_, tops) in zip(chain.layer_tops(), chain.steps(values), strict=True):
            values.update(zip(names, tops, strict=False))
            yield tuple(to_host(top.array) for top in tops)
