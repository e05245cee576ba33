"""The report of a verification as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.schema import times
from bridge.show.table import table_rows
from bridge.verification.ci import problems
from bridge.verification.report import Report
from bridge.verification.results import (
    DIFFERENT,
    SAME,
    SKIPPED,
    BlobResult,
    Checked,
    OutputsResult,
    PartResult,
    PartsResult,
    TopResult,
    WeightsResult,
    plural,
)

LISTED = 20
"""How many differences of one comparison are listed."""


class ReportText:
    """A report as lines of a given width.

    Args:
        report: The report.
        width: Characters of the longest line.
    """

    def __init__(self, report: Report, width: int) -> None:
        self.report, self.width = report, width

    def lines(self) -> Iterator[str]:
        """The lines; the last one is the verdict."""
        report = self.report
        yield from self._labelled("files", " ".join(report.files))
        if report.against:
            yield from self._labelled("against", " ".join(report.against))
        for remark in report.remarks:
            yield from self._labelled("note", remark)
        for line in report.undone:
            yield from self._labelled("not done", line)
        for checked in report.checked:
            yield from self._checked(checked)
        for group in _by_first(report.weights):
            yield ""
            yield from self._weights(group)
        for parts in report.parts:
            yield from self._parts(parts)
        if report.inputs:
            yield ""
        for line in report.inputs:
            yield from self._labelled("input", line)
        for outputs in report.outputs:
            yield ""
            yield from self._outputs(outputs)
        yield ""
        yield report.summary()

    def summary_lines(self) -> Iterator[str]:
        """What keeps the report from passing, and the verdict; a line where nothing does."""
        found = problems(self.report)
        for text in found[:LISTED]:
            yield from self._labelled("*", text)
        if len(found) > LISTED:
            yield f"* and {len(found) - LISTED} more"
        yield self.report.summary()

    def _checked(self, checked: Checked) -> Iterator[str]:
        if checked.findings:
            yield ""
            yield from self._labelled("checks", checked.source)
        for finding in checked.findings:
            yield from self._labelled(f"  {finding.severity}", f"[{finding.check}] {finding}")

    def _parts(self, result: PartsResult) -> Iterator[str]:
        """The parts that are not the same on both sides; the others are counted."""
        if result.count(SAME) == len(result.parts):
            return
        yield ""
        yield from self._labelled("inputs, outputs and layers", f"{result.a} against {result.b}")
        yield from self._differences([part for part in result.parts if part.status == DIFFERENT])
        for why in dict.fromkeys(part.why for part in result.parts if part.status == SKIPPED):
            names = [
                f"{part.kind} '{part.name}'" for part in result.parts if part.status == SKIPPED and part.why == why
            ]
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            yield from self._labelled("  not compared", f"{', '.join(names[:LISTED])}{more}: {why}")

    def _weights(self, results: Sequence[WeightsResult]) -> Iterator[str]:
        first = results[0]
        yield from self._labelled("weights", f"{first.a} against {', '.join(result.b for result in results)}")
        if not first.blobs:
            yield from self._labelled("  not compared", first.why or "there are no blobs")
            return
        verdicts = zip(*([blob.status for blob in result.blobs] for result in results), strict=True)
        yield from self._table(
            ("layer", "blob", "shape", "type", *(Path(result.b).name for result in results)),
            [
                (blob.layer, blob.role, times(blob.shape), blob.dtype, *verdict)
                for blob, verdict in zip(first.blobs, verdicts, strict=True)
            ],
        )
        yield from self._differences([blob for result in results for blob in result.blobs if blob.status == DIFFERENT])
        for result in results:
            yield from self._reasons(result)

    def _reasons(self, result: WeightsResult) -> Iterator[str]:
        """Why blobs were not compared, or not as they are stored: one line for all blobs with the same reason."""
        for why in dict.fromkeys(blob.why for blob in result.blobs if blob.why and blob.status != DIFFERENT):
            alike = [blob for blob in result.blobs if blob.why == why and blob.status != DIFFERENT]
            names = ", ".join(dict.fromkeys(blob.layer for blob in alike))
            label = "  not compared" if alike[0].status == SKIPPED else "  compared"
            yield from self._labelled(label, f"{plural(len(alike), 'blob')} ({names}): {why}")

    def _outputs(self, result: OutputsResult) -> Iterator[str]:
        yield from self._labelled("outputs", f"{result.a} against {result.b}")
        if not result.tops:
            yield from self._labelled("  not compared", result.why or "no layer writes anything")
            return
        shown = [top for top in result.tops if top.status != SKIPPED]
        equal = all(top.status == SAME and top.metrics and not top.metrics.max_abs for top in shown)
        if equal and shown:
            yield f"  {plural(len(shown), 'top')} equal to the last bit"
        elif shown:
            rows = [(top.layer, top.top, times(top.shape), *_figures(top), _verdict(top)) for top in shown]
            yield from self._table(("layer", "top", "shape", "max abs", "max rel", "of bound", "verdict"), rows)
        different = [top for top in shown if top.status == DIFFERENT]
        yield from self._differences(different)
        if different:
            yield from self._first(different[0])
        for top in shown:
            if top.status == SAME and top.metrics is not None and top.metrics.rows:
                yield from self._labelled("  compared", f"top '{top.top}': {(top.alone or top.metrics).rows}")
        for why in dict.fromkeys(top.why for top in result.tops if top.status == SKIPPED):
            number = sum(top.status == SKIPPED and top.why == why for top in result.tops)
            yield from self._labelled("  not compared", f"{plural(number, 'top')}: {why}")

    def _first(self, top: TopResult) -> Iterator[str]:
        yield from self._labelled("  first difference", f"{top.label}, top '{top.top}'")
        for line in top.inputs:
            yield from self._labelled("    its input", line)
        if top.bound:
            yield from self._labelled("    its bound", top.bound)

    def _differences(self, results: Sequence[BlobResult | PartResult | TopResult]) -> Iterator[str]:
        for result in results[:LISTED]:
            yield from self._labelled("  *", str(result))
        if len(results) > LISTED:
            yield f"  * and {len(results) - LISTED} more"

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
        """A table that begins with two names and a shape."""
        for row in table_rows(columns, rows, width=self.width, names=3, indent="  "):
            yield from row.split("\n")

    def _labelled(self, label: str, text: str) -> list[str]:
        """``label: text``; further lines are indented."""
        indent = " " * (len(label) - len(label.lstrip()) + 4)
        head = f"{label} " if label.endswith("*") else f"{label}: "
        lines = textwrap.wrap(
            " ".join(text.split()), self.width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
        )
        return lines or [head.rstrip()]


def _by_first(results: Sequence[WeightsResult]) -> list[list[WeightsResult]]:
    """Comparisons of one side with several others, which fit in one table."""
    groups: dict[tuple[str, tuple[str, ...]], list[WeightsResult]] = {}
    for result in results:
        rows = tuple(f"{blob.layer}/{blob.role}" for blob in result.blobs)
        groups.setdefault((result.a, rows), []).append(result)
    return list(groups.values())


def _verdict(top: TopResult) -> str:
    return "same alone" if top.status == SAME and top.alone is not None else top.status


def _figures(top: TopResult) -> tuple[str, str, str]:
    """Largest absolute and relative difference, and how much of its bound the layer itself uses."""
    found, decisive = top.metrics or top.alone, top.decisive
    if found is None or decisive is None:
        return "", "", ""
    return f"{found.max_abs:.2g}", f"{found.max_rel:.2g}", f"{100 * decisive.ratio:.3g} %"
