"""The report as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bridge.schema import times
from bridge.show import html
from bridge.show.html import Content, Markup, tag
from bridge.show.pictures import bar, columns
from bridge.verification.ci import PROBLEMS_LISTED, cases_of, problems
from bridge.verification.pictures import histogram, kernels
from bridge.verification.report import Report
from bridge.verification.results import (
    DIFFERENT,
    RATIOS,
    SAME,
    SKIPPED,
    ULPS,
    BlobResult,
    OutputsResult,
    TopResult,
    WeightsResult,
    plural,
)


def report_page(report: Report) -> str:
    """The page, complete."""
    return html.page(f"{report.verdict}: {' '.join(report.files)}", *_sections(report))


def report_fragment(report: Report) -> str:
    """What a notebook shows: the verdict, what keeps it from passing, and a line for each comparison."""
    colour = ("#1a7f4b", "#c0392b", "#b0762b")[report.status]
    found = problems(report)
    more = tag("li", f"and {len(found) - PROBLEMS_LISTED} more") if len(found) > PROBLEMS_LISTED else None
    rows = [
        (title, *(str(sum(status == wanted for _, status, _ in cases)) for wanted in (DIFFERENT, SKIPPED)))
        for title, cases in cases_of(report)
    ]
    return html.fragment(
        tag("b", report.summary(), style=f"color: {colour}"),
        tag("ul", (tag("li", text) for text in found[:PROBLEMS_LISTED]), more) if found else None,
        html.table(("compared", "different", "not compared"), rows),
    )


def _sections(report: Report) -> Iterator[Markup]:
    yield _verdict(report)
    yield tag("h2", "What was compared")
    yield html.facts(
        [
            ("model", ", ".join(report.files)),
            *([("against", ", ".join(report.against))] if report.against else []),
            *[("input", line) for line in report.inputs],
            *[("note", line) for line in report.remarks],
            *[("not done", line) for line in report.undone],
        ]
    )
    yield from _findings(report)
    if apart := [part for result in report.parts for part in result.parts if part.status != SAME]:
        yield tag("h2", "Inputs, outputs and layers")
        yield tag("ul", (tag("li", str(part), class_=part.status.split()[-1]) for part in apart))
    if report.outputs:
        yield tag("h2", "Outputs, layer by layer")
    yield from map(_outputs, report.outputs)
    if report.weights:
        yield tag("h2", "Weights, bit by bit")
    yield from map(_weights, report.weights)
    yield from _pictures(report)
    yield tag("h2", "Versions")
    yield html.facts(report.versions.items())


def _verdict(report: Report) -> Markup:
    word, counts = report.summary().split(": ", 1)
    first = report.differences[0] if report.differences else None
    named = report.first_difference or first
    return tag(
        "header",
        tag("h1", word, id="verdict"),
        tag("p", counts),
        tag("p", f"First difference: {named}", id="first", class_="different") if named is not None else None,
        (tag("p", f"its input: {line}", class_="soft") for line in getattr(named, "inputs", ())),
        class_=word.lower(),
    )


def _findings(report: Report) -> Iterator[Markup]:
    findings = [(checked.source, finding) for checked in report.checked for finding in checked.findings]
    if findings:
        yield tag("h2", "Consistency")
        yield tag(
            "ul",
            (
                tag(
                    "li",
                    f"{finding.severity}: {finding} ",
                    tag("span", f"[{finding.check}] {source}", class_="soft"),
                    class_=finding.severity,
                )
                for source, finding in findings
            ),
        )


def _outputs(result: OutputsResult) -> Markup:
    head = tag("h3", f"{result.a} against {result.b}")
    if result.why:
        return html.join(head, tag("p", f"not compared: {result.why}", class_="skipped"))
    names = ("layer", "top", "max abs", "max rel", "cosine", "of its bound", "differences", "verdict")
    shown = [top for top in result.tops if top.status != SKIPPED]
    hidden = len(result.tops) - len(shown)
    foot = tag("p", f"{hidden} more could not be seen on both sides.", class_="skipped") if hidden else None
    return html.join(head, html.table(names, map(_top_row, shown)), foot)


def _top_row(top: TopResult) -> Iterator[Content]:
    found, decisive = top.metrics or top.alone, top.decisive
    yield _two(top.layer, top.type)
    yield _two(top.top, times(top.shape))
    if found is None or decisive is None:
        yield from ("", "", "", "", "")
    else:
        yield from map(_number, (f"{found.max_abs:.3g}", f"{found.max_rel:.3g}", f"{found.cosine:.7g}"))
        yield _number(f"{100 * decisive.ratio:.3g} %"), bar(decisive.ratio, top.status == DIFFERENT)
        yield columns(decisive.spread, _SPREAD, bad=1) if decisive.spread else tag("span", "none", class_="soft")
    yield _status(top.status, top.why or top.bound)


_SPREAD = "values that are equal, then that differ by up to " + ", ".join(f"{ratio:g}" for ratio in RATIOS) + " bounds"
_ULPS = "values that are equal, then that differ by up to " + ", ".join(f"{ulps:g}" for ulps in ULPS) + " ulp"


def _weights(result: WeightsResult) -> Markup:
    head = tag("h3", f"{result.a} against {result.b}")
    if result.why:
        return html.join(head, tag("p", f"not compared: {result.why}", class_="skipped"))
    return html.join(head, html.table(("layer", "blob", "stored as", "verdict"), map(_blob_row, result.blobs)))


def _blob_row(blob: BlobResult) -> Iterator[Content]:
    yield _two(blob.layer, blob.type)
    yield _two(blob.role, times(blob.shape))
    yield blob.dtype
    reason = blob.why
    if blob.index is not None:
        first = f"the first at {list(blob.index)}: {blob.values[0]} against {blob.values[1]}"
        reason = f"{plural(blob.differing, 'value')}, {first}"
    yield _status(blob.status, reason), columns(blob.spread, _ULPS, bad=len(ULPS)) if blob.spread else None


def _pictures(report: Report) -> Iterator[Markup]:
    if report.net is None or not any(layer.blobs for layer in report.net):
        return
    picture = kernels(report.net)
    if picture is not None:
        name, png = picture
        yield tag("h2", f"Filters of layer {name}")
        yield html.image(png, f"the kernels of layer {name}, side by side", "pixels")
    yield tag("h2", "Values of the weights")
    yield html.table(
        ("layer", "blob", "smallest", "largest", "how many of each size"),
        (
            _values_row(layer.name, role, blob.numpy())
            for layer in report.net
            for role, blob in layer.blobs.entries()
            if blob.size
        ),
    )


def _values_row(layer: str, role: str, array: np.ndarray) -> Iterator[Content]:
    counts, low, high = histogram(array)
    yield layer
    yield role
    yield from map(_number, (f"{low:.4g}", f"{high:.4g}"))
    yield columns(counts, f"histogram of {layer} {role}")


def _two(first: str, second: str) -> Content:
    return tag("b", first), " ", tag("i", second)


def _number(text: str) -> Markup:
    return tag("span", text, class_="number")


def _status(status: str, reason: str) -> Content:
    kind = {SAME: "same", DIFFERENT: "different"}.get(status, "skipped")
    return tag("span", status, class_=kind), " ", tag("i", reason)
