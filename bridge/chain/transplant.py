"""Filling a chain that the user wrote with a net's blobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.matching import Links, Pair, Part, is_affine, links_of, pairs, parts
from bridge.chain.renaming import Rename, chosen
from bridge.errors import ModelError, UsageError
from bridge.schema import Net, times
from bridge.show.table import table_text

STATES = ("filled", "skipped", "missing", "mismatched")


@dataclass(frozen=True)
class Row:
    """One line of a report: a blob, the array it was meant for, and what became of it.

    Attributes:
        layer: Name of the layer; empty for an array that no blob was for.
        role: Role of the blob; empty likewise.
        path: The array's path in the chain; empty for a blob that no array was for.
        state: One of :data:`STATES`.
        detail: Why, or how.
    """

    layer: str
    role: str
    path: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class TransplantReport:
    """What a transplant did; prints as a table.

    Attributes:
        rows: One per blob, and one per array that no blob was for.
    """

    rows: tuple[Row, ...]

    def _of(self, state: str) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.state == state)

    @property
    def filled(self) -> tuple[Row, ...]:
        """Blobs that an array now holds."""
        return self._of("filled")

    @property
    def skipped(self) -> tuple[Row, ...]:
        """Blobs and arrays left out: as asked, or because another blob of the layer does not fit."""
        return self._of("skipped")

    @property
    def missing(self) -> tuple[Row, ...]:
        """Blobs without an array, and parameters without a blob."""
        return self._of("missing")

    @property
    def mismatched(self) -> tuple[Row, ...]:
        """Blobs that do not fit; ``detail`` has both shapes."""
        return self._of("mismatched")

    def check(self, where: str) -> None:
        """See that nothing was left over but what was asked for.

        Args:
            where: Name of the net, for the error.

        Raises:
            ModelError: Something was; names the first of it.
        """
        left = (*self.mismatched, *self.missing)
        if left:
            first = left[0]
            what = f"layer '{first.layer}': blob '{first.role}'" if first.layer else f"array '{first.path}'"
            more = f" ({len(left) - 1} more)" if len(left) > 1 else ""
            raise ModelError(
                f"{what}: {first.detail}{more}",
                where=where,
                hint="name what may be left out with skip; without strict, the report tells of every blob",
            )

    def __str__(self) -> str:
        cells = [(row.layer, row.role, row.path, row.state, row.detail) for row in self.rows]
        counts = ", ".join(f"{len(self._of(state))} {state}" for state in STATES)
        return f"{table_text(('layer', 'blob', 'array', 'state', 'detail'), cells)}\n{counts}"


def transplant(
    net: Net, chain: Any, rename: Rename = None, skip: Iterable[str] = (), *, strict: bool = False, by: str = "name"
) -> TransplantReport:
    """Fill a chain that the user wrote with a net's blobs.

    A layer goes to the link of its name: the whole path (``features/conv1``), or its last part where that is
    unique; characters that Python's names lack may be underscores there. Grouped weights go into grouped
    links as they are, into others spread to their dense form; weights of convolutions into a Linear and back
    where the counts allow it; a BatchNorm, and the Scale behind it, into a BatchNormalization. An array that
    has no size yet gets the blob's. A layer is filled whole or not at all.

    Args:
        net: The net.
        chain: Any :class:`chainer.Link`.
        rename: Layer -> path of its link: a mapping (also of patterns with one ``*`` that carries over,
            ``conv*`` -> ``features.*``), pairs of a regular expression for the whole name and its replacement,
            or a function.
        skip: Names of layers and paths of links to leave out, or patterns.
        strict: Raise where a blob does not fit, or where a layer or a parameter is left over.
        by: ``name``, or ``order``: the layers with blobs and the links with arrays in the order of their
            definition, as many as possible, each with one that it fits.

    Returns:
        What was done.

    Raises:
        UsageError: An argument is wrong, or two layers go to one array; nothing is filled then.
        ModelError: ``strict``, and something was left over; nothing is filled then.
    """
    links = links_of(chain)
    plan = _Plan(net, links, chosen(skip, [*(layer.name for layer in net.layers), *links], "skip"))
    for pair in pairs(net, links, rename, by):
        plan.add(pair)
    plan.add_left_over()
    report = TransplantReport(tuple(plan.rows))
    if strict:
        report.check(net.where)
    for part, values in plan.fills:
        part.fill(values)
    return report


class _Plan:
    """What is to be done, found out before anything is."""

    def __init__(self, net: Net, links: Links, skip: set[str]) -> None:
        self.net, self.links, self.skip = net, links, skip
        self.rows: list[Row] = []
        self.fills: list[tuple[Part, np.ndarray]] = []
        self._meant: dict[str, str] = {}  # path of an array -> layer
        self._skipped_paths = set(skip)
        self._origins: dict[int, str] = {}  # blob that is filled -> layer

    def add(self, pair: Pair) -> None:
        """Say what becomes of a layer."""
        layer, name = pair.layer, pair.layer.name
        if name in self.skip or (pair.link is not None and pair.path in self.skip):
            self._skipped_paths.add(pair.path if pair.link is not None else name)
            self.rows += [Row(name, role, "", "skipped", "as asked") for role in layer.blobs]
        elif pair.link is None:
            self.rows += [self._homeless(pair, role) for role in layer.blobs]
        else:
            self._add_parts(pair)

    def _homeless(self, pair: Pair, role: str) -> Row:
        owner = self._origins.get(id(pair.layer.blobs.blob(role).origin))
        if owner is not None:
            return Row(pair.layer.name, role, "", "skipped", f"shared with layer '{owner}'")
        return Row(pair.layer.name, role, "", "missing", pair.problem)

    def _add_parts(self, pair: Pair) -> None:
        name = pair.layer.name
        rows, fills = [], []
        for part in parts(pair.layer, pair.link, affine=is_affine(self.net, pair)):
            path = f"{pair.path}/{part.array}".lstrip("/")
            self._claim(path, name)
            try:
                fills.append((part, part.shaped()))
                rows.append(Row(name, part.role, path, "filled", _how(part, fills[-1][1])))
            except ModelError as error:
                rows.append(Row(name, part.role, path, "mismatched", error.text))
        if len(fills) == len(rows):
            self.fills += fills
            self._origins.update((id(part.layer.blobs.blob(part.role).origin), name) for part, _ in fills)
        else:
            left = "another blob of the layer does not fit"
            rows = [Row(r.layer, r.role, r.path, "skipped", left) if r.state == "filled" else r for r in rows]
        self.rows += rows

    def _claim(self, path: str, layer: str) -> None:
        other = self._meant.setdefault(path, layer)
        if other != layer:
            raise UsageError(f"layers '{other}' and '{layer}' both go to '{path}'", where=self.net.where)

    def add_left_over(self) -> None:
        """Name each parameter that no blob was for."""
        for path, link in self.links.items():
            for name in sorted(link._params):
                where = f"{path}/{name}".lstrip("/")
                if where in self._meant:
                    continue
                skipped = path in self._skipped_paths
                self.rows.append(
                    Row("", "", where, *(("skipped", "as asked") if skipped else ("missing", "no blob for it")))
                )


def _how(part: Part, values: np.ndarray) -> str:
    """What is worth telling about a blob that fits."""
    have = part.layer.blobs.blob(part.role).shape
    told = [f"{times(have)} as {times(values.shape)}"] if have != values.shape else []
    own, links = part.layer.attributes().get("eps"), getattr(part.link, "eps", None)
    if part.array == "avg_var" and own != links:
        told.append(f"the link's eps is {links:g}, the layer's {own:g}")
    return "; ".join(told)
