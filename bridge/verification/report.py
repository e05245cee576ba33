"""The report of a verification: verdict, table for the terminal, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import printable
from bridge.schema import Net
from bridge.verification.results import (
    DIFFERENT,
    ERROR,
    SAME,
    SKIPPED,
    BlobResult,
    Checked,
    Metrics,
    OutputsResult,
    PartResult,
    PartsResult,
    TopResult,
    WeightsResult,
    plural,
)

SCHEMA = 1
"""Version of the JSON; raised when a key changes its meaning."""
NEEDED = "that takes two readers, two engines, --against or --recorded"
"""What it takes to compare anything."""


@dataclass(frozen=True, repr=False)
class Report:
    """What was verified, and what came out.

    Attributes:
        files, against: The two models.
        checked: The consistency checks, once per model.
        weights: Comparisons of stored blobs.
        outputs: Comparisons of what layers write.
        parts: Comparisons of inputs, outputs, layers, and arrays of a recording: which side has them.
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
    parts: tuple[PartsResult, ...] = ()

    @property
    def differences(self) -> list[BlobResult | PartResult | TopResult]:
        """Every blob, part and top that differs, in this order."""
        blobs = [blob for result in self.weights for blob in result.blobs if blob.status == DIFFERENT]
        tops = [top for result in self.outputs for top in result.tops if top.status == DIFFERENT]
        parts = [part for result in self.parts for part in result.parts if part.status == DIFFERENT]
        return [*blobs, *parts, *tops]

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
    def missing(self) -> list[str]:
        """Why the status is 2, one line each: what could not be done, or that there was nothing to compare."""
        nothing = [f"nothing was compared: {NEEDED}"] if self.status == 2 else []
        return list(self.undone) or nothing

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is the same, and no check found an error."""
        return self.status == 0

    @property
    def verdict(self) -> str:
        """The status in a word."""
        return ("PASSED", "FAILED", "NOT DONE")[self.status]

    def __repr__(self) -> str:
        return printable(f"<Report of {' '.join(map(str, self.files))}: {self.summary()}>")

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bridge.verification.html import report_fragment

        return report_fragment(self)

    def text(self, width: int = 80) -> str:
        """The report as text.

        Args:
            width: Characters of its longest line.
        """
        from bridge.verification.text import ReportText

        return "\n".join(ReportText(self, width).lines())

    def summary(self) -> str:
        """The last line: the verdict with counts."""
        return f"{self.verdict}: {', '.join(_counts(self))}"

    def to_json(self) -> str:
        """The report as JSON text; the schema is ``report.schema.json`` beside this module."""
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
            "parts": [
                {"a": result.a, "b": result.b, "parts": [vars(part) for part in result.parts]} for result in self.parts
            ],
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
        from bridge.verification.html import report_page

        with atomic(path) as stream:
            stream.write(report_page(self).encode("utf-8", "backslashreplace"))  # names need not be UTF-8


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


def _counts(report: Report) -> Iterator[str]:
    skipped = 0
    apart = sum(result.count(DIFFERENT) for result in report.parts)
    if apart:
        yield f"{apart} of the inputs, outputs and layers {'differs' if apart == 1 else 'differ'}"
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
