"""The report of a verification: verdict, table for the terminal, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.schema import Net, times
from bridge.verification.results import (
    DIFFERENT,
    ERROR,
    SAME,
    SKIPPED,
    BlobResult,
    Checked,
    Metrics,
    OutputsResult,
    TopResult,
    WeightsResult,
    plural,
)

SCHEMA = 1
"""Version of the JSON; raised when a key changes its meaning."""
WIDTH = 80
NEEDED = "that takes two readers, two engines, --against or --recorded"
"""What it takes to compare anything."""
LISTED = 20
"""How many differences of one comparison the text lists."""


@dataclass(frozen=True)
class Report:
    """What was verified, and what came out.

    Attributes:
        files, against: The two models.
        checked: The consistency checks, once per model.
        weights: Comparisons of stored blobs.
        outputs: Comparisons of what layers write.
        inputs: What the engines were fed, one line per input.
        remarks: What else there is to say, such as what could not be used.
        undone: What was asked for and could not be done.
        versions: Name -> version of what took part.
        net: The net whose weights the HTML page pictures.
    """

    files: tuple[str, ...]
    against: tuple[str, ...] = ()
    checked: tuple[Checked, ...] = ()
    weights: tuple[WeightsResult, ...] = ()
    outputs: tuple[OutputsResult, ...] = ()
    inputs: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    net: Net | None = field(default=None, repr=False, compare=False)

    @property
    def differences(self) -> list[BlobResult | TopResult]:
        """Every blob and top that differs, weights first."""
        blobs = [blob for result in self.weights for blob in result.blobs if blob.status == DIFFERENT]
        tops = [top for result in self.outputs for top in result.tops if top.status == DIFFERENT]
        return [*blobs, *tops]

    @property
    def first_difference(self) -> TopResult | None:
        """The first layer, in the order of the net, whose output differs."""
        firsts = (next((top for top in result.tops if top.status == DIFFERENT), None) for result in self.outputs)
        return next((top for top in firsts if top is not None), None)

    @property
    def compared(self) -> int:
        """How many blobs and tops were compared."""
        return sum(result.compared for result in self.weights) + sum(result.compared for result in self.outputs)

    @property
    def errors(self) -> int:
        """How many errors the consistency checks found."""
        return sum(checked.count(ERROR) for checked in self.checked)

    @property
    def status(self) -> int:
        """0 it holds; 1 a difference or an error was found; 2 nothing, or not all that was asked for, was compared."""
        if self.differences or self.errors:
            return 1
        return 0 if self.compared and not self.undone else 2

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is the same, and no check found an error."""
        return self.status == 0

    @property
    def verdict(self) -> str:
        """The status in a word."""
        return ("PASSED", "FAILED", "NOT DONE")[self.status]

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def summary(self) -> str:
        """The last line: the verdict with counts."""
        return f"{self.verdict}: {', '.join(_counts(self))}"

    def to_json(self) -> str:
        """The report as JSON text; docs/verify.md has the schema."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; infinities and NaN are text."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "status": self.status,
            "summary": self.summary(),
            "files": list(self.files),
            "against": list(self.against),
            "weights": [_weights_dict(result) for result in self.weights],
            "outputs": [_outputs_dict(result) for result in self.outputs],
            "inputs": list(self.inputs),
            "checks": [
                {"source": checked.source, "ran": list(checked.ran), "findings": [vars(f) for f in checked.findings]}
                for checked in self.checked
            ],
            "remarks": list(self.remarks),
            "undone": list(self.undone),
            "versions": dict(self.versions),
        }

    def write_html(self, path: str | Path) -> None:
        """Write the report as one self-contained page.

        Raises:
            OutputError: The file cannot be written.
        """
        from bridge.files.atomic import atomic
        from bridge.verification.html import page

        with atomic(path) as stream:
            stream.write(page(self).encode("utf-8", "backslashreplace"))  # names need not be UTF-8


# -- JSON ------------------------------------------------------------------------------------


def _weights_dict(result: WeightsResult) -> dict[str, Any]:
    blobs = [
        {
            "layer": blob.layer,
            "type": blob.type,
            "blob": blob.role,
            "shape": list(blob.shape),
            "dtype": blob.dtype,
            "status": blob.status,
            "why": blob.why,
            "index": None if blob.index is None else list(blob.index),
            "values": list(blob.values),
            "differing": blob.differing,
            "ulps": blob.ulps,
            "spread": list(blob.spread),
        }
        for blob in result.blobs
    ]
    return {"a": result.a, "b": result.b, "why": result.why, "blobs": blobs}


def _outputs_dict(result: OutputsResult) -> dict[str, Any]:
    tops = [
        {
            "layer": top.layer,
            "type": top.type,
            "top": top.top,
            "shape": list(top.shape),
            "status": top.status,
            "why": top.why,
            "bound": top.bound,
            "since": list(top.since),
            "metrics": _metrics_dict(top.metrics),
            "alone": _metrics_dict(top.alone),
            "inputs": list(top.inputs),
        }
        for top in result.tops
    ]
    return {"a": result.a, "b": result.b, "why": result.why, "tops": tops}


def _metrics_dict(metrics: Metrics | None) -> dict[str, Any] | None:
    if metrics is None:
        return None
    found = {name: _number(value) if isinstance(value, float) else value for name, value in vars(metrics).items()}
    return {**found, "index": None if metrics.index is None else list(metrics.index), "spread": list(metrics.spread)}


def _number(value: float) -> float | str:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else str(value)


# -- text ------------------------------------------------------------------------------------


def _counts(report: Report) -> Iterator[str]:
    skipped = 0
    words = ((report.weights, "blob", "the same", "the same"), (report.outputs, "top", "agrees", "agree"))
    for results, noun, one, more in words:
        counts = {status: sum(result.count(status) for result in results) for status in (SAME, DIFFERENT, SKIPPED)}
        if counts[DIFFERENT]:
            verb = "differs" if counts[DIFFERENT] == 1 else "differ"
            yield f"{counts[DIFFERENT]} of {plural(counts[SAME] + counts[DIFFERENT], noun)} {verb}"
        elif counts[SAME]:
            yield f"{plural(counts[SAME], noun)} {one if counts[SAME] == 1 else more}"
        skipped += counts[SKIPPED]
    if not report.compared:
        yield "nothing was compared"
    elif skipped:
        yield f"{skipped} not compared"
    ran = sum(len(checked.ran) for checked in report.checked)
    if report.errors:
        yield f"{plural(report.errors, 'error')} in {plural(ran, 'check')}"
    elif ran:
        yield f"{plural(ran, 'check')} held"


def _lines(report: Report) -> Iterator[str]:
    yield from wrap("files", " ".join(report.files))
    if report.against:
        yield from wrap("against", " ".join(report.against))
    for remark in report.remarks:
        yield from wrap("note", remark)
    for line in report.undone:
        yield from wrap("not done", line)
    for checked in report.checked:
        yield from _checked_lines(checked)
    for group in _by_first(report.weights):
        yield ""
        yield from _weights_lines(group)
    if report.inputs:
        yield ""
        for line in report.inputs:
            yield from wrap("input", line)
    for outputs in report.outputs:
        yield ""
        yield from _outputs_lines(outputs)
    yield ""
    yield report.summary()


def _checked_lines(checked: Checked) -> Iterator[str]:
    if checked.findings:
        yield ""
        yield from wrap("checks", checked.source)
    for finding in checked.findings:
        yield from wrap(f"  {finding.severity}", f"[{finding.check}] {finding}")


def _by_first(results: Sequence[WeightsResult]) -> list[list[WeightsResult]]:
    """Comparisons of one side with several others, which fit in one table."""
    groups: dict[tuple[str, tuple[str, ...]], list[WeightsResult]] = {}
    for result in results:
        rows = tuple(f"{blob.layer}/{blob.role}" for blob in result.blobs)
        groups.setdefault((result.a, rows), []).append(result)
    return list(groups.values())


def _weights_lines(results: Sequence[WeightsResult]) -> Iterator[str]:
    first = results[0]
    yield from wrap("weights", f"{first.a} against {', '.join(result.b for result in results)}")
    if not first.blobs:
        yield from wrap("  not compared", first.why or "there are no blobs")
        return
    verdicts = zip(*([blob.status for blob in result.blobs] for result in results), strict=True)
    yield from _grid(
        ("layer", "blob", "shape", "type", *(Path(result.b).name for result in results)),
        [
            (blob.layer, blob.role, times(blob.shape), blob.dtype, *verdict)
            for blob, verdict in zip(first.blobs, verdicts, strict=True)
        ],
    )
    yield from _details([blob for result in results for blob in result.blobs if blob.status == DIFFERENT])
    for result in results:
        yield from _reasons(result)


def _reasons(result: WeightsResult) -> Iterator[str]:
    """Why blobs were not compared, or not as they are stored, once for all of one reason."""
    for why in dict.fromkeys(blob.why for blob in result.blobs if blob.why and blob.status != DIFFERENT):
        alike = [blob for blob in result.blobs if blob.why == why and blob.status != DIFFERENT]
        names = ", ".join(dict.fromkeys(blob.layer for blob in alike))
        label = "  not compared" if alike[0].status == SKIPPED else "  compared"
        yield from wrap(label, f"{plural(len(alike), 'blob')} ({names}): {why}")


def _outputs_lines(result: OutputsResult) -> Iterator[str]:
    yield from wrap("outputs", f"{result.a} against {result.b}")
    if not result.tops:
        yield from wrap("  not compared", result.why or "no layer writes anything")
        return
    shown = [top for top in result.tops if top.status != SKIPPED]
    equal = all(top.status == SAME and top.metrics and not top.metrics.max_abs for top in shown)
    if equal and shown:
        yield f"  {plural(len(shown), 'top')} equal to the last bit"
    elif shown:
        rows = [(top.layer, top.top, times(top.shape), *_figures(top), _verdict(top)) for top in shown]
        yield from _grid(("layer", "top", "shape", "max abs", "max rel", "of bound", "verdict"), rows)
    yield from _details([top for top in shown if top.status == DIFFERENT])
    first = next((top for top in shown if top.status == DIFFERENT), None)
    if first is not None:
        yield from wrap("  first difference", f"{first.label}, top '{first.top}'")
        for line in first.inputs:
            yield from wrap("    its input", line)
        if first.bound:
            yield from wrap("    its bound", first.bound)
    for why in dict.fromkeys(top.why for top in result.tops if top.status == SKIPPED):
        number = sum(top.status == SKIPPED and top.why == why for top in result.tops)
        yield from wrap("  not compared", f"{plural(number, 'top')}: {why}")


def _verdict(top: TopResult) -> str:
    return "same alone" if top.status == SAME and top.alone is not None else top.status


def _figures(top: TopResult) -> tuple[str, str, str]:
    """Largest absolute and relative difference, and how much of its bound the layer itself uses."""
    found, judged = top.metrics or top.alone, top.judged
    if found is None or judged is None:
        return "", "", ""
    return f"{found.max_abs:.2g}", f"{found.max_rel:.2g}", f"{100 * judged.ratio:.3g} %"


def _details(results: Sequence[BlobResult | TopResult]) -> Iterator[str]:
    for result in results[:LISTED]:
        yield from wrap("  *", str(result))
    if len(results) > LISTED:
        yield f"  * and {len(results) - LISTED} more"


def wrap(label: str, text: str) -> Iterator[str]:
    """``label: text`` in lines of at most WIDTH, further ones indented."""
    indent = " " * (len(label) - len(label.lstrip()) + 4)
    head = f"{label} " if label.endswith("*") else f"{label}: "
    yield from _folded(" ".join(text.split()), head, indent) or [head.rstrip()]


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table within WIDTH; where the first two columns, which are names, do not fit, they have a line of their own."""
    rest = [max(len(row[i]) for row in (columns, *rows)) for i in range(2, len(columns))]
    names = [max(len(row[i]) for row in (columns, *rows)) for i in (0, 1)]
    room = max(WIDTH - 2 - sum(rest) - 2 * (len(columns) - 1), 16)
    while sum(names) > room:
        names[names.index(max(names))] -= 1
    widths = [*names, *rest]
    for row in (columns, *rows):
        cells = list(row)
        if any(len(cell) > width for cell, width in zip(row, names, strict=False)):
            yield from _folded("  ".join(row[:2]), "  ", "    ")
            cells[:2] = "", ""
        yield ("  " + "  ".join(map(str.ljust, cells, widths))).rstrip()


def _folded(text: str, first: str, further: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)
