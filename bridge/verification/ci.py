"""The report of a verification for machines that build and test: JUnit XML, and GitHub's annotations and summary."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bridge.verification.report import Report
from bridge.verification.results import DIFFERENT, ERROR, SKIPPED, BlobResult, PartResult, TopResult, plural

PROBLEMS_LISTED = 10
"""Problems that are listed; of more, GitHub shows no annotations."""

_UNWRITABLE = re.compile("[^\\t\\n -\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")

_Case = tuple[str, str, str]
"""A test case: its name, its status, and what there is to say."""


def cases_of(report: Report) -> Iterator[tuple[str, list[_Case]]]:
    """Each comparison with its cases."""
    for weights in report.weights:
        found = [(f"{blob.layer}/{blob.role}", blob.status, _said(blob)) for blob in weights.blobs]
        yield f"weights: {weights.a} against {weights.b}", found or _none(weights.why)
    for outputs in report.outputs:
        found = [(f"{top.layer}/{top.top}", top.status, _said(top)) for top in outputs.tops]
        yield f"outputs: {outputs.a} against {outputs.b}", found or _none(outputs.why)
    for parts in report.parts:
        yield (
            f"parts: {parts.a} against {parts.b}",
            [(f"{part.kind} {part.name}".strip(), part.status, _said(part)) for part in parts.parts],
        )
    for checked in report.checked:
        errors = {finding.check: str(finding) for finding in checked.findings if finding.severity == ERROR}
        ran = [(name, DIFFERENT if name in errors else "", errors.get(name, "")) for name in checked.ran]
        yield f"checks: {checked.source}", ran
    if report.status == 2:
        yield "verification", [("done", ERROR, line) for line in report.missing]


def _said(result: BlobResult | PartResult | TopResult) -> str:
    return result.why if result.status == SKIPPED else str(result)


def _none(why: str) -> list[_Case]:
    return [("comparison", SKIPPED, why or "there is nothing to compare")]


def junit(report: Report) -> str:
    """The report as JUnit XML: a suite for each comparison, a case for each blob, top, part and check.

    Source: the schema of Apache Ant's JUnit task, as CI servers read it.
    """
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites", name=_clean(report.summary()))
    for title, cases in cases_of(report):
        suite = ElementTree.SubElement(root, "testsuite", name=_clean(title))
        for name, status, text in cases:
            case = ElementTree.SubElement(suite, "testcase", name=_clean(name), classname=_clean(title))
            kind = {DIFFERENT: "failure", SKIPPED: "skipped", ERROR: "error"}.get(status)
            if kind is not None:
                ElementTree.SubElement(case, kind, message=_clean(text))
        statuses = [status for _, status, _ in cases]
        suite.attrib.update(
            tests=str(len(cases)),
            failures=str(statuses.count(DIFFERENT)),
            errors=str(statuses.count(ERROR)),
            skipped=str(statuses.count(SKIPPED)),
        )
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Text without the characters that XML cannot hold.

    Source: Extensible Markup Language (XML) 1.0, 2.2 Characters.
    """
    return _UNWRITABLE.sub("\ufffd", text)


def problems(report: Report) -> list[str]:
    """One line for whatever keeps the report from passing: what was not done, errors, differences."""
    findings = [f"[{f.check}] {f}" for checked in report.checked for f in checked.findings if f.severity == ERROR]
    return [*report.missing, *findings, *map(str, report.differences)]


def workflow_commands(report: Report) -> list[str]:
    """The report as GitHub's workflow commands: an error for each problem, and a notice with the verdict.

    GitHub shows ten errors of a step; where there are more, the last one counts the rest.

    Source: GitHub Docs, "Workflow commands for GitHub Actions".
    """
    found = problems(report)
    if len(found) > PROBLEMS_LISTED:
        found = [*found[: PROBLEMS_LISTED - 1], f"and {plural(len(found) - PROBLEMS_LISTED + 1, 'problem')} more"]
    lines = [_command("error", "bridge verify", text) for text in found]
    return [*lines, _command("notice", f"bridge verify: {report.verdict}", report.summary())]


def _command(kind: str, title: str, text: str) -> str:
    return f"::{kind} title={_escaped(title, ':,')}::{_escaped(text)}"


def _escaped(text: str, also: str = "") -> str:
    return "".join(f"%{ord(char):02X}" if char in f"%\r\n{also}" else char for char in text)


def markdown(report: Report) -> str:
    """The report as Markdown for a step's summary: the verdict, the problems, and a line for each comparison."""
    lines = [f"### {_plain(report.summary())}", "", f"`{' '.join(report.files)}`"]
    if report.against:
        lines.append(f"against `{' '.join(report.against)}`")
    if found := problems(report):
        lines += ["", *(f"- {_plain(text)}" for text in found[:PROBLEMS_LISTED])]
        lines += [f"- and {len(found) - PROBLEMS_LISTED} more"] if len(found) > PROBLEMS_LISTED else []
    lines += ["", "| compared | same | different | not compared |", "|---|---:|---:|---:|"]
    for title, cases in cases_of(report):
        statuses = [status for _, status, _ in cases]
        counts = _counted(statuses, DIFFERENT, SKIPPED)
        lines.append(f"| {_plain(title)} | {len(cases) - sum(counts)} | {counts[0]} | {counts[1]} |")
    return "\n".join(lines) + "\n"


def _counted(statuses: list[str], *wanted: str) -> list[int]:
    return [statuses.count(status) for status in wanted]


_MARKS = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#"})


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(text.split()).translate(_MARKS)
