"""Layers and links matched by their order: along the flow of the data, or as they are defined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from bridge.chain.build import LayerLink
from bridge.chain.matching import suits
from bridge.chain.tracing import INPUT, Trace
from bridge.schema import Layer, Net

_K = TypeVar("_K", bound=Hashable)


class LinkChoice(NamedTuple):
    """Where a layer may go.

    Attributes:
        paths: The paths of the links that it may go to: none, one, or several that nothing tells apart.
        sure: Whether it goes to the only one in any case.
    """

    paths: tuple[str, ...]
    sure: bool


_INPUT = -1
"""Stands for the net's input among the indices of layers."""


def by_definition(layers: Sequence[Layer], links: Mapping[str, Any]) -> list[LinkChoice]:
    """As many layers as possible, each with a later link than the one before and one that all its blobs fit.

    Where several such alignments are possible, a layer has all the links that it has in any of them.
    """
    paths, fit = list(links), _Fits(links)
    fitting = [[fit(layer, path) for path in paths] for layer in layers]
    before, behind = _longest(fitting), _longest([row[::-1] for row in fitting[::-1]])
    rows, columns = len(layers), len(paths)
    most = before[rows][columns]

    def aligned(i: int, j: int) -> bool:
        return fitting[i][j] and before[i][j] + 1 + behind[rows - 1 - i][columns - 1 - j] == most

    def left_out(i: int) -> bool:
        return any(before[i][j] + behind[rows - 1 - i][columns - j] == most for j in range(columns + 1))

    found = [tuple(path for j, path in enumerate(paths) if aligned(i, j)) for i in range(rows)]
    return [LinkChoice(paths, len(paths) == 1 and not left_out(i)) for i, paths in enumerate(found)]


def _longest(fitting: Sequence[Sequence[bool]]) -> list[list[int]]:
    """How many of the first i layers and the first j links can be aligned."""
    best = [[0] * (len(fitting[0]) + 1)] if fitting else [[0]]
    for row in fitting:
        line, last = [0], best[-1]
        for j, matches in enumerate(row):
            line.append(max(line[j], last[j + 1], last[j] + 1 if matches else 0))
        best.append(line)
    return best


def by_flow(net: Net, layers: Sequence[Layer], run: Trace) -> list[LinkChoice]:
    """The links that have the place in the chain that the layer has in the net, and that all its blobs fit.

    A link stays in question if what it takes may be what the layer takes, and what takes its result what takes the
    layer's. So the right link of a chain that computes what the net computes is never ruled out: one link that is
    left is the right one, and several are told apart by nothing but their names.
    """
    before = _layers_before(net, layers)
    fit = _Fits(run.links)
    start = {index: {path for path in run.links if fit(net.layers[index], path)} for index in before}
    found = _by_inputs(before, run.before, start)
    own = {id(layer): index for index, layer in enumerate(net.layers)}
    kept = [tuple(path for path in run.links if path in found.get(own[id(layer)], ())) for layer in layers]
    claims = Counter(path for paths in kept for path in paths)
    return [LinkChoice(paths, len(paths) == 1 and claims[paths[0]] == 1) for paths in kept]


class _Fits:
    """Whether a layer's blobs fit a link; asked once for all that are alike."""

    def __init__(self, links: Mapping[str, Any]) -> None:
        self.links = links
        self._kinds = {path: _kind(link) for path, link in links.items()}
        self._known: dict[tuple[Any, ...], bool] = {}

    def __call__(self, layer: Layer, path: str) -> bool:
        shapes = tuple((role, blob.shape) for role, blob in layer.blobs.entries())
        key = (layer.type, layer.group, layer.weight_transposed, shapes, self._kinds[path])
        if key not in self._known:
            self._known[key] = suits(layer, self.links[path])
        return self._known[key]


def _kind(link: Any) -> tuple[Any, ...]:
    arrays = ((name, getattr(link, name)) for name in sorted({*link._params, *link._persistent}))
    shapes = tuple((name, getattr(array, "shape", None)) for name, array in arrays)
    sizes = tuple(str(getattr(link, name, None)) for name in ("groups", "ksize", "out_channels", "out_size"))
    return (type(link), link.layer.type if isinstance(link, LayerLink) else "", shapes, sizes)


def _layers_before(net: Net, layers: Sequence[Layer]) -> dict[int, frozenset[int]]:
    """The layers with blobs whose results each layer with blobs takes; shared blobs count for the first layer.

    Bottoms of places or flags, such as a mask, count for nothing: in a chain they are bare arrays.
    """
    wanted = {id(layer) for layer in layers}
    first: dict[frozenset[int], int] = {}
    stands: dict[int, int] = {}
    before: dict[int, frozenset[int]] = {}
    through: dict[int, frozenset[int]] = {_INPUT: frozenset({_INPUT})}
    for index, layer in enumerate(net.layers):
        reads = enumerate(net.flow.reads[index])
        sources = [through[value.layer] for place, value in reads if layer.fill(place) is None]
        taken = frozenset().union(*sources) if sources else frozenset({_INPUT})
        if id(layer) not in wanted:
            through[index] = taken
            continue
        shared = frozenset(id(blob.origin) for _, blob in layer.blobs.entries())
        stands[index] = first.setdefault(shared, index)
        through[index] = frozenset({stands[index]})
        if stands[index] == index:
            before[index] = taken
    return before


def _by_inputs(
    before: Mapping[int, frozenset[int]], calls: Mapping[str, frozenset[str]], start: Mapping[int, set[str]]
) -> dict[int, set[str]]:
    """Rule out links until nothing changes; what has no counterpart is passed through on both sides."""
    lost: set[int] = set()
    while True:
        open_ = {index: set(paths) for index, paths in start.items() if paths and index not in lost}
        used = set().union(*open_.values()) if open_ else set()
        takes, gets = _without(before, set(open_), _INPUT), _without(calls, used, INPUT)
        if (failed := _rule_out(open_, takes, gets)) is None:
            return _narrowed(open_, takes, gets)
        lost.add(failed)


def _without(before: Mapping[_K, frozenset[_K]], kept: set[_K], root: _K) -> dict[_K, frozenset[_K]]:
    """What each of the kept ones takes, through those that are not kept."""
    taken: dict[_K, frozenset[_K]] = {}
    for node, sources in before.items():
        through = [frozenset({source}) if source in kept or source == root else taken[source] for source in sources]
        taken[node] = frozenset().union(*through) if through else frozenset({root})
    return {node: sources for node, sources in taken.items() if node in kept}


def _rule_out(
    open_: dict[int, set[str]], takes: Mapping[int, frozenset[int]], gets: Mapping[str, frozenset[str]]
) -> int | None:
    """Leave to each layer the links that take what it takes; returns the first layer that has none left."""
    for index in takes:
        kept = {path for path in open_[index] if _alike(takes[index], gets[path], open_)}
        if not kept:
            return index
        open_[index] = kept
    return None


def _alike(layers: Iterable[int], paths: Iterable[str], open_: Mapping[int, set[str]]) -> bool:
    """Whether each of the layers may be one of the links, and each of the links one of the layers."""

    def may(layer: int, path: str) -> bool:
        return path == INPUT if layer == _INPUT else path in open_[layer]

    return all(any(may(layer, path) for path in paths) for layer in layers) and all(
        any(may(layer, path) for layer in layers) for path in paths
    )


def _narrowed(
    open_: dict[int, set[str]], takes: Mapping[int, frozenset[int]], gets: Mapping[str, frozenset[str]]
) -> dict[int, set[str]]:
    """Use what takes the results, and that no link serves two layers; what would leave nothing is not used."""
    takers, getters = _turned(takes), _turned(gets)

    def by_takers(index: int, path: str) -> bool:
        return _alike(takers.get(index, ()), getters.get(path, ()), open_)

    def by_sources(index: int, path: str) -> bool:
        return _alike(takes[index], gets[path], open_)

    def alone(index: int, path: str) -> bool:
        return not any(other != index and paths == {path} for other, paths in open_.items())

    rules: tuple[Callable[[int, str], bool], ...] = (by_takers, by_sources, alone)
    while any(_applied(open_, rule) for rule in rules):
        pass
    return open_


def _applied(open_: dict[int, set[str]], rule: Callable[[int, str], bool]) -> bool:
    changed = False
    for index, paths in open_.items():
        kept = {path for path in paths if rule(index, path)} if len(paths) > 1 else paths
        if kept and kept != paths:
            open_[index], changed = kept, True
    return changed


def _turned(before: Mapping[_K, frozenset[_K]]) -> dict[_K, list[_K]]:
    """The other way round: who takes the result of each."""
    behind: dict[_K, list[_K]] = {}
    for node, sources in before.items():
        for source in sources:
            behind.setdefault(source, []).append(node)
    return behind
