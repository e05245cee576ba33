"""The report as one HTML page: no script, no network, legible on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from bridge.schema import times
from bridge.verification.pictures import bar, columns, filters, histogram
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

_STYLE = """
:root { --back: #fff; --text: #1c2126; --soft: #5b6570; --line: #d8dde2; --good: #1f7a4d; --bad: #b3261e;
  --track: #edf0f2; }
@media (prefers-color-scheme: dark) { :root { --back: #14181c; --text: #e4e8ec; --soft: #9aa5af; --line: #343b42;
  --good: #4fbf86; --bad: #ff8a80; --track: #262c32; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; } dd, p, h3, li { overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 2.2rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.25rem; }
h3 { margin: 1.25rem 0 .5rem; font-size: 1rem; }
header { border-left: .5rem solid var(--good); padding-left: 1rem; } header.failed { border-color: var(--bad); }
header.passed h1, .same { color: var(--good); } header.failed h1, .different, .error { color: var(--bad); }
p { margin: .25rem 0; } .soft, .skipped, .note { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } b { font-weight: 600; } i { font-style: normal; }
.number { white-space: nowrap; } td i { display: block; font-size: .85em; color: var(--soft); }
.bar { width: 7rem; height: .6rem; display: block; margin-top: .45rem; }
.histogram { width: 9rem; height: 2.2rem; display: block; }
.track { fill: var(--track); } .mark { fill: var(--text); } .good { fill: var(--good); } .bad { fill: var(--bad); }
img { image-rendering: pixelated; width: min(100%, 32rem); border: 1px solid var(--line); }
ul { padding-left: 1.25rem; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
@media (max-width: 40rem) {
  thead { display: none; } table, tbody, tr, td { display: block; } tr { border-bottom: 1px solid var(--line); }
  tr { padding: .5rem 0; } td { border: 0; padding: .1rem 0; display: flex; gap: 1rem; }
  td::before { content: attr(data-of); color: var(--soft); flex: 0 0 30%; }
  td > span { flex: 1; min-width: 0; overflow-wrap: anywhere; } .bar, .histogram { width: 100%; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
}
"""


def page(report: Report) -> str:
    """The page, complete."""
    title = f"{report.verdict}: {' '.join(report.files)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(_sections(report))
        + "\n</body></html>\n"
    )


def _sections(report: Report) -> Iterator[str]:
    yield _verdict(report)
    yield "<h2>What was compared</h2>" + _list(
        [
            ("model", ", ".join(report.files)),
            *([("against", ", ".join(report.against))] if report.against else []),
            *[("input", line) for line in report.inputs],
            *[("note", line) for line in report.remarks],
            *[("not done", line) for line in report.undone],
        ]
    )
    yield from _findings(report)
    if report.outputs:
        yield "<h2>Outputs, layer by layer</h2>"
    yield from map(_outputs, report.outputs)
    if report.weights:
        yield "<h2>Weights, bit by bit</h2>"
    yield from map(_weights, report.weights)
    yield from _pictures(report)
    yield "<h2>Versions</h2>" + _list(report.versions.items())


def _verdict(report: Report) -> str:
    word, counts = report.summary().split(": ", 1)
    lines = [f'<h1 id="verdict">{word}</h1><p>{escape(counts)}</p>']
    first = report.differences[0] if report.differences else None
    named = report.first_difference or first
    if named is not None:
        lines.append(f'<p id="first" class="different">First difference: {escape(str(named))}</p>')
    for line in getattr(named, "inputs", ()):
        lines.append(f'<p class="soft">its input: {escape(line)}</p>')
    return f'<header class="{word.lower()}">{"".join(lines)}</header>'


def _findings(report: Report) -> Iterator[str]:
    findings = [(checked.source, finding) for checked in report.checked for finding in checked.findings]
    if findings:
        yield (
            "<h2>Consistency</h2><ul>"
            + "".join(
                f'<li class="{finding.severity}">{finding.severity}: {escape(str(finding))} '
                f'<span class="soft">[{finding.check}] {escape(source)}</span></li>'
                for source, finding in findings
            )
            + "</ul>"
        )


def _outputs(result: OutputsResult) -> str:
    head = f"<h3>{escape(result.a)} against {escape(result.b)}</h3>"
    if result.why:
        return f'{head}<p class="skipped">not compared: {escape(result.why)}</p>'
    names = ("layer", "top", "max abs", "max rel", "cosine", "of its bound", "differences", "verdict")
    shown = [top for top in result.tops if top.status != SKIPPED]
    hidden = len(result.tops) - len(shown)
    foot = f'<p class="skipped">{hidden} more could not be seen on both sides.</p>' if hidden else ""
    return head + _table(names, (_top_row(top) for top in shown)) + foot


def _top_row(top: TopResult) -> Iterator[str]:
    found, judged = top.metrics or top.alone, top.judged
    yield _two(top.layer, top.type)
    yield _two(top.top, times(top.shape))
    if found is None or judged is None:
        yield from ("", "", "", "", "")
    else:
        yield from map(_number, (f"{found.max_abs:.3g}", f"{found.max_rel:.3g}", f"{found.cosine:.7g}"))
        yield _number(f"{100 * judged.ratio:.3g} %") + bar(judged.ratio, top.status == DIFFERENT)
        yield columns(judged.spread, _SPREAD, bad=1) if judged.spread else '<span class="soft">none</span>'
    yield _said(top.status, top.why or top.bound)


_SPREAD = "values that are equal, then that differ by up to " + ", ".join(f"{ratio:g}" for ratio in RATIOS) + " bounds"
_ULPS = "values that are equal, then that differ by up to " + ", ".join(f"{ulps:g}" for ulps in ULPS) + " ulp"


def _weights(result: WeightsResult) -> str:
    head = f"<h3>{escape(result.a)} against {escape(result.b)}</h3>"
    if result.why:
        return f'{head}<p class="skipped">not compared: {escape(result.why)}</p>'
    names = ("layer", "blob", "stored as", "verdict")
    return head + _table(names, (_blob_row(blob) for blob in result.blobs))


def _blob_row(blob: BlobResult) -> Iterator[str]:
    yield _two(blob.layer, blob.type)
    yield _two(blob.role, times(blob.shape))
    yield escape(blob.dtype)
    reason = blob.why
    if blob.index is not None:
        first = f"the first at {list(blob.index)}: {blob.values[0]} against {blob.values[1]}"
        reason = f"{plural(blob.differing, 'value')}, {first}"
    yield _said(blob.status, reason) + (columns(blob.spread, _ULPS, bad=len(ULPS)) if blob.spread else "")


def _pictures(report: Report) -> Iterator[str]:
    if report.net is None or not any(layer.blobs for layer in report.net):
        return
    picture = filters(report.net)
    if picture is not None:
        name, address = picture
        yield (
            f"<h2>Filters of layer {escape(name)}</h2>"
            f'<img alt="the kernels of layer {escape(name)}, side by side" src="{address}">'
        )
    yield "<h2>Values of the weights</h2>" + _table(
        ("layer", "blob", "smallest", "largest", "how many of each size"),
        (
            _values_row(layer.name, role, blob.numpy())
            for layer in report.net
            for role, blob in layer.blobs.entries()
            if blob.size
        ),
    )


def _values_row(layer: str, role: str, array: object) -> Iterator[str]:
    counts, low, high = histogram(array)  # type: ignore[arg-type]
    yield escape(layer)
    yield escape(role)
    yield from map(_number, (f"{low:.4g}", f"{high:.4g}"))
    yield columns(counts, f"histogram of {escape(layer)} {escape(role)}")


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already; on a phone each row is a card, its cells labelled."""
    names = list(names)
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-of="{name}"><span>{cell}</span></td>' for name, cell in zip(names, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{entries}</dl>"


def _two(first: str, second: str) -> str:
    return f"<b>{escape(first)}</b> <i>{escape(second)}</i>"


def _number(text: str) -> str:
    return f'<span class="number">{text}</span>'


def _said(status: str, reason: str) -> str:
    kind = {SAME: "same", DIFFERENT: "different"}.get(status, "skipped")
    return f'<span class="{kind}">{status}</span> <i>{escape(reason)}</i>'
