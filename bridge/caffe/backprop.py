"""Which layers and bottoms the backward pass goes through. Source: net.cpp ``Net::Init``."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.caffe.layer import Node
from bridge.caffe.wiring import Wiring
from bridge.errors import ModelError


def mark_backward(nodes: Sequence[Node], wiring: Wiring) -> None:
    """Set ``need_backward``, ``propagate`` and ``param_propagate`` of each layer.

    Args:
        nodes: The layers; each has the loss weights of its tops.
        wiring: Their blobs.

    Raises:
        ModelError: A layer's ``propagate_down`` has another number of values than it has bottoms.
    """
    _downwards(nodes, wiring)
    _upwards(nodes, wiring)
    if wiring.rest.get("force_backward") in (True, 1):
        for node in nodes:
            node.need_backward = True
            node.propagate = [old or node.allows_force_backward(place) for place, old in enumerate(node.propagate)]
            node.param_propagate = [True] * len(node.param_propagate)


def _downwards(nodes: Sequence[Node], wiring: Wiring) -> None:
    """What has parameters behind it."""
    needed: set[int] = set()
    for node, bottoms, tops in zip(nodes, wiring.bottoms, wiring.tops, strict=True):
        given = node.definition.all("propagate_down")
        if given and len(given) != len(bottoms):
            raise ModelError(f"has {len(given)} propagate_down for {len(bottoms)} bottoms", where=node.label)
        node.propagate = [bool(given[place]) if given else number in needed for place, number in enumerate(bottoms)]
        rates = [spec.get("lr_mult", 1.0) for spec in node.definition.messages("param")]
        count = len(node.layer.blobs)
        node.param_propagate = [bool(rates[place]) if place < len(rates) else True for place in range(count)]
        node.need_backward = any(number in needed for number in bottoms) or any(node.param_propagate)
        if node.need_backward:
            needed.update(tops)


def _upwards(nodes: Sequence[Node], wiring: Wiring) -> None:
    """What contributes to the loss."""
    under: set[int] = set()
    skipped: set[int] = set()
    for node, bottoms, tops in zip(reversed(nodes), reversed(wiring.bottoms), reversed(wiring.tops), strict=True):
        contributes = any(node.loss_weights) or any(number in under for number in tops)
        if node.need_backward and all(number in skipped for number in tops):
            node.need_backward = False
            node.propagate = [False] * len(bottoms)
        if not contributes:
            node.need_backward = False
            node.propagate = [False] * len(bottoms)
        for place, number in enumerate(bottoms):
            if contributes:
                under.add(number)
            if not node.propagate[place]:
                skipped.add(number)
