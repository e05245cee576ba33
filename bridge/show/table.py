"""Tables for people: as wide as the terminal at most, plain text where there is no terminal.

A table whose first columns are names that do not fit gives a long name a line of its own::

    layer                   shape             dtype
    conv1                   64 x 3 x 7 x 7    float32
    inception_4a/3x3_reduce/with/a/name
                            96 x 480 x 1 x 1  float32

Nothing is cut off: every name can be copied, and every row can be searched for.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence

from bridge.errors import printable

_GAP = "  "
_LEAST = 6
"""Characters that a column of names keeps."""
_LEAST_PROSE = 16


def table_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int | None = None,
    names: int = 1,
    prose: bool = False,
    indent: str = "",
) -> list[str]:
    """The heading and every row of a table, each as text of one or several lines.

    Args:
        columns: The heading.
        rows: The cells. Characters that would steer a terminal are replaced by escapes.
        width: Characters that there is room for; ``None`` keeps every row on one line.
        names: How many of the first columns may become narrower, with a line of their own for longer names.
        prose: The last column is text, which may be wrapped between words.
        indent: Put in front of every line.
    """
    lines = [[printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(_cells, column)) for column in zip(*lines, strict=True)]
    fits = width is None or _fit(widths, width - _cells(indent), names, prose)
    return [_row(line, widths, width, names, indent, _GAP if fits else _GAP[1:]) for line in lines]


def table_text(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int | None = None,
    names: int = 1,
    prose: bool = False,
) -> str:
    """The whole table as text; the arguments are those of :func:`table_rows`."""
    return "\n".join(table_rows(columns, rows, width=width, names=names, prose=prose))


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; ``None`` if it is none."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return max(shutil.get_terminal_size().columns, 40)


def print_styled(text: str, style: str) -> None:
    """Print text, on a terminal in a style of rich's such as ``bold``; the variable NO_COLOR turns that off.

    Source: https://no-color.org.
    """
    if terminal_width() is None:
        print(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(text, "" if console.no_color else style), soft_wrap=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    names: int = 1,
    prose: bool = False,
) -> None:
    """Print a table on stdout; the arguments are those of :func:`table_rows`, after a title that may be empty."""
    if title:
        print(f"{title}\n")
    heading, *rest = table_rows(columns, rows, width=terminal_width(), names=names, prose=prose)
    print_styled(heading, "bold")
    for row in rest:
        print(row)


def _cells(text: str) -> int:
    """The width of a text on a terminal: Chinese characters take two columns each."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _fit(widths: list[int], width: int, names: int, prose: bool) -> bool:
    """Make the columns of prose and of names narrower, as far as the width demands; whether they fit then."""
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    if prose and excess > 0:
        narrower = min(excess, max(0, widths[-1] - _LEAST_PROSE))
        widths[-1] -= narrower
        excess -= narrower
    while excess > 0:
        widest = max(range(names), key=lambda index: widths[index])
        if widths[widest] <= _LEAST:
            return False
        widths[widest] -= 1
        excess -= 1
    return True


def _row(
    cells: Sequence[str], widths: Sequence[int], width: int | None, names: int, indent: str, gap: str = _GAP
) -> str:
    """One row: a line of their own for names that are too long, then the cells, then what is left of the prose."""
    lines = []
    cells = list(cells)
    if any(_cells(cell) > limit for cell, limit in zip(cells[:names], widths, strict=False)):
        own = _GAP.join(filter(None, cells[:names]))
        lines += textwrap.wrap(own, width or len(own), initial_indent=indent, subsequent_indent=indent + _GAP * 2,
                               break_on_hyphens=False)  # fmt: skip
        cells[:names] = [""] * names
    last = [cells[-1]]
    if _cells(cells[-1]) > widths[-1]:
        last = textwrap.wrap(cells[-1], widths[-1], break_long_words=False, break_on_hyphens=False)
    lines.append(gap.join(map(_padded, [*cells[:-1], last[0]], widths)))
    before = " " * (sum(widths[:-1]) + len(gap) * (len(widths) - 1))
    lines += [before + line for line in last[1:]]
    first = len(lines) - len(last)
    return "\n".join([*lines[:first], *((indent + line).rstrip() for line in lines[first:])])


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))
