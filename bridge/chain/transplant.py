"""Copying a net's blobs into a chain that the user wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.chain.matching import Part, parts
from bridge.chain.pairing import Links, Pair, is_affine, pairs
from bridge.chain.renaming import Rename, chosen
from bridge.chain.tracing import links_of
from bridge.errors import ModelError, UsageError
from bridge.schema import Net, times
from bridge.show.table import table_text

STATES = ("filled", "skipped", "missing", "mismatched", "ambiguous")
_COLUMNS = ("layer", "blob", "array", "state", "detail")


@dataclass(frozen=True)
class Row:
    """One line of a report: a blob, the array for it, and the result.

    Attributes:
        layer: Name of the layer; empty for an array without a blob.
        role: Role of the blob, such as ``weight``; empty for an array without a blob.
        path: Path of the array in the chain; empty for a blob without an array.
        state: One of :data:`STATES`.
        detail: The reason, or how the blob was changed to fit.
    """

    layer: str
    role: str
    path: str
    state: str
    detail: str = ""


@dataclass(frozen=True, repr=False)
class TransplantReport:
    """The result of a transplant; ``print`` shows it as a table.

    Attributes:
        rows: One per blob, and one per array without a blob.
        notes: What makes the chain compute something else than the net, though it is filled; one line each.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def _of(self, state: str) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.state == state)

    @property
    def filled(self) -> tuple[Row, ...]:
        """Blobs whose values an array now holds."""
        return self._of("filled")

    @property
    def skipped(self) -> tuple[Row, ...]:
        """Blobs and arrays left out, by ``skip`` or because another blob of the layer does not fit."""
        return self._of("skipped")

    @property
    def missing(self) -> tuple[Row, ...]:
        """Blobs without an array, and parameters without a blob."""
        return self._of("missing")

    @property
    def mismatched(self) -> tuple[Row, ...]:
        """Blobs that do not fit their array; ``detail`` has both shapes."""
        return self._of("mismatched")

    @property
    def ambiguous(self) -> tuple[Row, ...]:
        """Blobs that could go to several arrays, or share their only one with another blob; ``detail`` names them."""
        return self._of("ambiguous")

    def check(self, where: str) -> None:
        """Check that every blob and every array was filled or skipped.

        Args:
            where: Name of the net, for the error.

        Raises:
            ModelError: Some are missing, mismatched or ambiguous; the message names the first one.
        """
        left = (*self.mismatched, *self.ambiguous, *self.missing)
        if left:
            first = left[0]
            what = f"layer '{first.layer}': blob '{first.role}'" if first.layer else f"array '{first.path}'"
            more = f" ({len(left) - 1} more)" if len(left) > 1 else ""
            raise ModelError(
                f"{what}: {first.detail}{more}",
                where=where,
                hint="leave out layers and links with skip; without strict, the report lists every blob",
            )

    @property
    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        return [(row.layer, row.role, row.path, row.state, row.detail) for row in self.rows]

    @property
    def _counts(self) -> str:
        return ", ".join(f"{len(self._of(state))} {state}" for state in STATES)

    def __repr__(self) -> str:
        return f"<TransplantReport: {self._counts}>"

    def __str__(self) -> str:
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return f"{table_text(_COLUMNS, self._cells)}\n{self._counts}{notes}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bridge.show import html

        notes = [html.tag("p", note) for note in self.notes]
        return html.fragment(html.tag("b", self._counts), html.table(_COLUMNS, self._cells), *notes)


def transplant(
    net: Net,
    chain: Any,
    rename: Rename = None,
    skip: Iterable[str] = (),
    *,
    strict: bool = False,
    by: str = "name",
    args: Any = None,
) -> TransplantReport:
    """Copy a net's blobs into a chain that the user wrote.

    A layer goes to the link of its name: the whole path (``features/conv1``), or the last part of the path where
    that is unique, or the one link of its kind in a chain of that name (``conv1_1/conv``). Characters that Python
    does not allow in names may be underscores in the link's name. What could be several links is left alone.

    Weights are changed to fit: a grouped weight becomes a dense one where the link has no groups; the weight
    of a convolution becomes that of a ``Linear``, and the reverse, where the number of values is the same;
    a BatchNorm and the Scale after it become one ``BatchNormalization``. An array without a size gets the size of
    the blob. If one blob of a layer does not fit, none of its blobs is copied.

    Args:
        net: The net.
        chain: Any :class:`chainer.Link`.
        rename: From the name of a layer to the path of its link: a mapping (with exact names, or with patterns
            that have one ``*``, such as ``conv*`` to ``features.*``); pairs of a regular expression for the whole
            name and its replacement; or a function.
        skip: Names of layers and paths of links to leave out, or patterns.
        strict: Raise an error if a blob does not fit, or if a blob has no array or a parameter no blob.
        by: ``name``, or ``order``: whatever the names, each layer to the link that has its place in the chain and
            that it fits. For that a copy of the chain is run once. A chain that does not run is matched in the
            order in which layers and links are defined. Links that nothing tells apart are ``ambiguous``.
        args: With ``order``, what to call the chain with: an array, or a list or tuple of arguments. By default
            zeros in the shapes of the net's inputs, with a batch of one.

    Returns:
        The report, with one row per blob.

    Raises:
        UsageError: An argument is not valid, or two layers go to one array. The chain is unchanged then.
        ModelError: ``strict``, and the report has missing, mismatched or ambiguous rows. The chain is unchanged then.
    """
    links = links_of(chain)
    plan = _Plan(net, links, chosen(skip, [*(layer.name for layer in net.layers), *links], "skip"))
    for pair in pairs(net, chain, rename, by, args):
        plan.add(pair)
    plan.add_left_over()
    report = TransplantReport(tuple(plan.rows), plan.notes())
    if strict:
        report.check(net.where)
    for part, values in plan.fills:
        part.fill(values)
    return report


class _Plan:
    """The copies to make and the rows of the report; the chain changes only when the plan is complete."""

    def __init__(self, net: Net, links: Links, skip: set[str]) -> None:
        self.net, self.links, self.skip = net, links, skip
        self.rows: list[Row] = []
        self.fills: list[tuple[Part, np.ndarray]] = []
        self._claimed: dict[str, str] = {}  # path of an array -> layer
        self._skipped_paths = set(skip)
        self._origins: dict[int, str] = {}  # identity of a blob that is copied -> layer

    def add(self, pair: Pair) -> None:
        """Add the rows and copies of one layer."""
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
        return Row(pair.layer.name, role, "", "ambiguous" if pair.candidates else "missing", pair.problem)

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
        other = self._claimed.setdefault(path, layer)
        if other != layer:
            raise UsageError(f"layers '{other}' and '{layer}' both go to '{path}'", where=self.net.where)

    def notes(self) -> tuple[str, ...]:
        """A note for each pair of an ``eps`` of links and of layers that are not the same."""
        found: dict[tuple[float, float], list[str]] = {}
        for part, _ in self.fills:
            if (other := _other_eps(part)) is not None:
                found.setdefault(other, []).append(part.layer.name)
        return tuple(
            f"eps is {links:g} in the links and {own:g} in the layers ({', '.join(names[:3])}"
            f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}); set link.eps = {own:g} for the net's results"
            for (links, own), names in found.items()
        )

    def add_left_over(self) -> None:
        """Add a row for each parameter without a blob."""
        for path, link in self.links.items():
            for name in sorted(link._params):
                where = f"{path}/{name}".lstrip("/")
                if where in self._claimed:
                    continue
                skipped = path in self._skipped_paths
                self.rows.append(
                    Row("", "", where, *(("skipped", "as asked") if skipped else ("missing", "no blob for it")))
                )


def _how(part: Part, values: np.ndarray) -> str:
    """How a blob was changed to fit, and whether the link computes with another ``eps``."""
    stored = part.layer.blobs.blob(part.role).shape
    notes = [f"{times(stored)} as {times(values.shape)}"] if stored != values.shape else []
    if (other := _other_eps(part)) is not None:
        notes.append(f"the link's eps is {other[0]:g}, the layer's {other[1]:g}")
    return "; ".join(notes)


def _other_eps(part: Part) -> tuple[float, float] | None:
    """The link's ``eps`` and the layer's, where a normalisation has another one than its link."""
    own, links = part.layer.attributes().get("eps"), getattr(part.link, "eps", None)
    if own is None or links is None or own == links or part.array in ("gamma", "beta", "avg_mean"):
        return None
    return links, own
