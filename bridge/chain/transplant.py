"""Filling a chain that the user wrote with a net's blobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from bridge.chain.build import NetChain, array_name
from bridge.chain.functions import chainer
from bridge.chain.names import unescape
from bridge.errors import ModelError, UsageError
from bridge.schema import Layer, Net, Shape, times
from bridge.weights import Initializer

Rename = Mapping[str, str] | Sequence[tuple[str, str]] | Callable[[str], str] | None


@dataclass(frozen=True)
class Row:
    """One line of a report: a blob, the array it was meant for, and what became of it.

    Attributes:
        layer, role: The blob; empty for an array that no blob was for.
        path: The array's path in the chain; empty for a blob that no array was for.
        state: ``filled``, ``skipped``, ``missing`` or ``mismatched``.
        detail: Why, or how.
    """

    layer: str
    role: str
    path: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class TransplantReport:
    """What a transplant did; prints as a table."""

    rows: tuple[Row, ...]

    def _of(self, state: str) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.state == state)

    @property
    def filled(self) -> tuple[Row, ...]:
        """Arrays that now hold their blob."""
        return self._of("filled")

    @property
    def skipped(self) -> tuple[Row, ...]:
        """Blobs left out: by ``skip``, or because another blob of their layer did not fit."""
        return self._of("skipped")

    @property
    def missing(self) -> tuple[Row, ...]:
        """Arrays without a blob, and blobs without an array."""
        return self._of("missing")

    @property
    def mismatched(self) -> tuple[Row, ...]:
        """Blobs whose shape does not fit; ``detail`` has both shapes."""
        return self._of("mismatched")

    def __str__(self) -> str:
        cells = [("layer", "blob", "array", "state", "detail")]
        cells += [(r.layer, r.role, r.path, r.state, r.detail) for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = ["  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in cells]
        counts = ", ".join(f"{len(self._of(s))} {s}" for s in ("filled", "skipped", "missing", "mismatched"))
        return "\n".join([*lines, counts])


def transplant(
    net: Net,
    chain: Any,
    rename: Rename = None,
    skip: Iterable[str] = (),
    *,
    strict: bool = False,
    by: str = "name",
) -> TransplantReport:
    """Fill a chain with a net's blobs.

    A layer goes to the link of its name (the path below the chain, or its last part). A
    grouped weight goes into a link with as many groups, or is spread into one without; the
    weight of an InnerProduct goes into a convolution over its whole input, and back; the
    statistics of a BatchNorm, and the Scale behind it, go into a BatchNormalization. An
    array that has no size yet gets the blob's. A layer is filled whole or not at all.

    Args:
        net: The net.
        chain: Any :class:`chainer.Link`.
        rename: Layer -> path of its link: a mapping (with patterns such as ``conv*`` ->
            ``features.*``), pairs of regular expression and replacement, or a function.
        skip: Names of layers to leave out, or patterns.
        strict: Raise where a blob does not fit, or where a layer or a link is left over.
        by: ``name``, or ``order``: the layers with blobs and the links with arrays in turn,
            each going to the next link that it fits.

    Returns:
        What was done.

    Raises:
        UsageError: An argument is wrong.
        ModelError: ``strict``, and something was left over; nothing is filled then.
    """
    links = _links(chain)
    layers = [layer for layer in net.layers if layer.blobs]
    pairs = _by_order(layers, links) if by == "order" else _by_name(layers, links, rename, by)
    rows: list[Row] = []
    work: list[tuple[Any, str, np.ndarray]] = []
    used: set[tuple[str, str]] = set()
    for layer, path in pairs:
        done, fills = _layer(net, layer, path, links, tuple(skip))
        rows += done
        work += fills
        used.update((row.path.rpartition("/")[0], row.path.rpartition("/")[2]) for row in done)
    rows += _left_over(links, used)
    report = TransplantReport(tuple(rows))
    if strict and (report.missing or report.mismatched):
        raise ModelError(f"the transplant is not complete\n{report}", where=net.where, hint="name what may be left out with skip")
    for link, name, values in work:
        _fill(link, name, values)
    return report


def _links(chain: Any) -> dict[str, Any]:
    """The links that hold arrays, by path."""
    built = isinstance(chain, NetChain)
    return {
        (unescape(path[1:]) if built else path[1:]): link
        for path, link in chain.namedlinks()
        if link._params or link._persistent
    }


def _by_name(layers: list[Layer], links: dict[str, Any], rename: Rename, by: str) -> list[tuple[Layer, str]]:
    if by != "name":
        raise UsageError(f"by='{by}', expected 'name' or 'order'")
    renamed = _renamer(rename)
    tails: dict[str, list[str]] = {}
    for path in links:
        tails.setdefault(path.rpartition("/")[2], []).append(path)
    pairs = []
    for layer in layers:
        wanted = renamed(layer.name).replace(".", "/") if rename else layer.name
        found = [wanted] if wanted in links else tails.get(wanted, [])
        pairs.append((layer, found[0] if len(found) == 1 else ""))
    return pairs


def _renamer(rename: Rename) -> Callable[[str], str]:
    if callable(rename):
        return rename
    if isinstance(rename, Mapping):
        return lambda name: _mapped(name, rename)
    rules = [(re.compile(pattern), text) for pattern, text in rename or ()]

    def substituted(name: str) -> str:
        for pattern, text in rules:
            if pattern.fullmatch(name):
                return pattern.sub(text, name)
        return name

    return substituted


def _mapped(name: str, rename: Mapping[str, str]) -> str:
    """The name by an exact entry, or by a pattern with one ``*`` that carries over."""
    if name in rename:
        return rename[name]
    for pattern, target in rename.items():
        if "*" in pattern and fnmatchcase(name, pattern):
            head, _, tail = pattern.partition("*")
            return target.replace("*", name[len(head) : len(name) - len(tail)], 1)
    return name


def _by_order(layers: list[Layer], links: dict[str, Any]) -> list[tuple[Layer, str]]:
    """Each layer with the next link that all its blobs fit."""
    free = list(links)
    pairs = []
    for layer in layers:
        fitting = [path for path in free if _fits(layer, links[path])]
        pairs.append((layer, fitting[0] if fitting else ""))
        if fitting:
            del free[: free.index(fitting[0]) + 1]
    return pairs


def _fits(layer: Layer, link: Any) -> bool:
    try:
        wanted = _arrays(layer, link)
    except ModelError:
        return False
    return bool(wanted) and all(hasattr(link, name) for name, _ in wanted.values())


def _layer(
    net: Net, layer: Layer, path: str, links: dict[str, Any], skip: tuple[str, ...]
) -> tuple[list[Row], list[tuple[Any, str, np.ndarray]]]:
    """What happens to one layer: rows for the report, and arrays to fill."""
    if any(fnmatchcase(layer.name, pattern) for pattern in skip):
        return [Row(layer.name, role, "", "skipped", "as asked") for role in layer.blobs], []
    if not path:
        if layer.type == "Scale" and (norm := _norm_before(net, layer)) is not None:
            return _layer_into(layer, norm.name if norm.name in links else "", links, ("gamma", "beta"))
        return [Row(layer.name, role, "", "missing", "no link of that name") for role in layer.blobs], []
    return _layer_into(layer, path, links, None)


def _layer_into(
    layer: Layer, path: str, links: dict[str, Any], names: tuple[str, str] | None
) -> tuple[list[Row], list[tuple[Any, str, np.ndarray]]]:
    if not path:
        return [Row(layer.name, role, "", "missing", "no link of that name") for role in layer.blobs], []
    link = links[path]
    rows, fills, whole = [], [], True
    for role in layer.blobs:
        try:
            found = _arrays(layer, link, names).get(role)
        except ModelError as error:
            rows.append(Row(layer.name, role, path, "mismatched", str(error.args[0])))
            whole = False
            continue
        if found is None:
            continue
        name, values = found
        row, fill = _one(layer, role, path, link, name, values)
        rows.append(row)
        whole &= row.state == "filled"
        fills += [(link, name, fill)] if fill is not None else []
    if whole:
        return rows, fills
    left = "another blob of the layer does not fit"
    return [r if r.state != "filled" else Row(r.layer, r.role, r.path, "skipped", left) for r in rows], []


def _arrays(layer: Layer, link: Any, names: tuple[str, str] | None = None) -> dict[str, tuple[str, Any]]:
    """Role -> (name of the link's array, values or ``None`` for the blob itself)."""
    if names is not None:
        return {role: (names[0] if role == "gamma" else names[1], None) for role in layer.blobs}
    if isinstance(link, chainer.links.BatchNormalization) and "mean" in layer.blobs:
        return _normalisation(layer)
    if isinstance(link, chainer.links.Scale) and layer.type == "Scale":
        return {role: ("W", None) if role == "gamma" else ("bias/b", None) for role in layer.blobs}
    return {role: (array_name(layer, role), None) for role in layer.blobs}


def _normalisation(layer: Layer) -> dict[str, tuple[str, Any]]:
    """A BatchNorm's blobs as a BatchNormalization has them: divided by the scale factor."""
    made: dict[str, tuple[str, Any]] = {}
    if hasattr(layer, "statistics_values"):
        mean, variance = layer.statistics_values()
    else:
        mean, variance = layer.blobs["mean"], layer.blobs["variance"]
    made["mean"], made["variance"] = ("avg_mean", mean), ("avg_var", variance)
    made.update({role: (role, None) for role in ("gamma", "beta") if role in layer.blobs})
    return made


def _one(
    layer: Layer, role: str, path: str, link: Any, name: str, values: Any
) -> tuple[Row, np.ndarray | None]:
    target = _target(link, name)
    if target is None:
        return Row(layer.name, role, path, "mismatched", f"the link has no '{name}'"), None
    where = f"{path}/{name}"
    initializer = Initializer(layer, role)
    try:
        shape = _shape(target, link, name, layer, role)
        made = np.asarray(values).reshape(shape) if values is not None else initializer.shaped(shape)
    except (ModelError, ValueError):
        have = times(layer.blobs.blob(role).shape)
        return Row(layer.name, role, where, "mismatched", f"{have} does not fit {times(_shape_of(target) or ())}"), None
    detail = "" if made.shape == layer.blobs.blob(role).shape else f"{times(layer.blobs.blob(role).shape)} as {times(made.shape)}"
    return Row(layer.name, role, where, "filled", detail), made


def _target(link: Any, name: str) -> Any:
    for part in name.split("/"):
        link = getattr(link, part, None)
    return link


def _shape_of(target: Any) -> Shape | None:
    array = getattr(target, "array", target)
    return tuple(array.shape) if array is not None else None


def _shape(target: Any, link: Any, name: str, layer: Layer, role: str) -> Shape:
    """The target's shape; for one that has none yet, the blob's, in the link's number of groups."""
    known = _shape_of(target)
    if known is not None:
        return known
    shape = layer.blobs.blob(role).shape
    if role == "weight" and getattr(layer, "transpose", False):
        shape = shape[::-1]
    groups = getattr(link, "groups", 1)
    if role == "weight" and layer.group > 1 and groups == 1:
        shape = (shape[0], shape[1] * layer.group, *shape[2:])
    elif role == "weight" and groups not in (1, layer.group):
        raise ModelError(f"the link has {groups} groups, the layer {layer.group}")
    wanted = getattr(link, "out_channels", None) or getattr(link, "out_size", None)
    out = shape[1] * layer.group if layer.type == "Deconvolution" and role == "weight" else shape[0]
    if wanted is not None and isinstance(wanted, int) and wanted != out:
        raise ModelError(f"{out} outputs do not fit {wanted}")
    return shape


def _fill(link: Any, name: str, values: np.ndarray) -> None:
    *parents, last = name.split("/")
    for part in parents:
        link = getattr(link, part)
    target = getattr(link, last)
    if isinstance(target, chainer.Parameter):
        if target.array is None:
            target.initialize(values.shape)
        target = target.array
    if isinstance(target, np.ndarray):
        target[...] = values
    else:
        target.set(np.ascontiguousarray(values.astype(target.dtype, copy=False)))


def _norm_before(net: Net, scale: Layer) -> Layer | None:
    """The BatchNorm whose result the Scale takes."""
    for layer in reversed(net.layers[: net.layers.index(scale)]):
        if scale.bottoms[0] in layer.tops:
            return layer if layer.type == "BatchNorm" else None
    return None


def _left_over(links: dict[str, Any], used: set[tuple[str, str]]) -> list[Row]:
    """A row for each parameter that no blob was for."""
    rows = []
    for path, link in links.items():
        for name in sorted(link._params):
            if (path, name) not in used:
                rows.append(Row("", "", f"{path}/{name}", "missing", "no blob for it"))
    return rows
