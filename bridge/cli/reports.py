"""How the report of a verification is printed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from bridge.cli import printable
from bridge.errors import OutputError
from bridge.show.table import print_styled, terminal_width

if TYPE_CHECKING:
    from bridge.verification import Report

REPORT_FORMATS = ("text", "summary", "json", "junit", "github")
"""What stdout gets: the whole report, only what differs, JSON, JUnit XML, or GitHub's annotations."""

_COLOURS = ("bold green", "bold red", "bold yellow")
"""Of the verdict, by status."""


def show(report: Report, form: str) -> None:
    """Print a report on stdout.

    Args:
        report: The report.
        form: One of :data:`REPORT_FORMATS`. ``github`` also appends to the file that GITHUB_STEP_SUMMARY names.
    """
    if form in ("text", "summary"):
        _show_text(report, form)
    elif form == "json":
        click.echo(report.to_json().encode(errors="backslashreplace").decode())
    elif form == "junit":
        from bridge.verification.ci import junit

        click.echo(junit(report), nl=False)
    else:
        _show_github(report)


def _show_text(report: Report, form: str) -> None:
    from bridge.verification.text import ReportText

    text = ReportText(report, terminal_width() or 80)
    *lines, last = text.lines() if form == "text" else text.summary_lines()
    for line in lines:
        click.echo(printable(line))
    print_styled(printable(last), _COLOURS[report.status])


def _show_github(report: Report) -> None:
    from bridge.verification.ci import markdown, workflow_commands

    for line in workflow_commands(report):
        click.echo(printable(line))
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(markdown(report))
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=path) from None
