"""How every command behaves on a terminal: how much it says, and how its options are listed."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

from bridge.errors import printable

_Command = TypeVar("_Command", bound=Callable[..., Any])

FIRST, LAST, READING = "Options", "On every command", "How FILES are read"
_SECTIONS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()
"""Option -> the title that it is listed under; :data:`FIRST` for those that are not here."""


class Voice:
    """How much a command says on stderr.

    Attributes:
        level: -1 after ``-q``: results and errors only. 1 after ``-v``: steps, times and memory as well.
        started: When the command began, in seconds of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a command."""
        self.level, self.started = 0, time.perf_counter()

    @property
    def quiet(self) -> bool:
        """Whether remarks and progress are left out."""
        return self.level < 0

    @property
    def verbose(self) -> bool:
        """Whether steps are said, and nothing is cut short."""
        return self.level > 0

    def progress(self, text: str) -> None:
        """Say on stderr what is done or begins, for people who wait; not after ``-q``."""
        if not self.quiet:
            click.echo(printable(text), err=True)

    def step(self, text: str) -> None:
        """Say what begins now, with the seconds since the command began; only after ``-v``."""
        if self.verbose:
            click.echo(f"{time.perf_counter() - self.started:8.2f} s  {printable(text)}", err=True)

    def end(self) -> None:
        """Say what the command took; only after ``-v``."""
        peak = _peak()
        self.step("done" + (f", {peak / 1e6:,.0f} MB of memory at most" if peak else ""))


VOICE = Voice()


def _peak() -> int:
    """The most memory that the process had, in bytes; 0 where the system does not say, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _louder(_: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        VOICE.level = 1 if parameter.name == "verbose" else -1


def voice_options() -> list[click.Option]:
    """``-v`` and ``-q``."""
    said: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True, "callback": _louder}
    made = [
        click.Option(["-v", "--verbose"], help="Say each step, times and memory; cut nothing short.", **said),
        click.Option(["-q", "--quiet"], help="Say results and errors only: no notes, no progress.", **said),
    ]
    _SECTIONS.update(dict.fromkeys(made, LAST))
    return made


def section(title: str) -> Callable[[_Command], _Command]:
    """Head the options that are declared below it with a title in ``--help``.

    Such as::

        @click.option("-o", ...)
        @section("Reports")
        @click.option("--json", ...)
        @click.option("--html", ...)

    Args:
        title: The title.
    """

    def apply(function: _Command) -> _Command:
        for parameter in getattr(function, "__click_params__", ()):
            _SECTIONS.setdefault(parameter, title)
        return function

    return apply


class Command(click.Command):
    """A command with ``-v`` and ``-q``, whose options are listed in sections, the usual ones first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += voice_options()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections: that of the usual options, those of the command, how files are read, and the rest."""
        listed: dict[str, list[tuple[str, str]]] = {FIRST: []}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        for parameter in sorted(options, key=lambda option: not option.required):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = LAST if "--help" in parameter.opts else _SECTIONS.get(parameter, FIRST)
                listed.setdefault(title, []).append(record)
        for title in _order(listed):
            with formatter.section(title):
                formatter.write_dl(listed[title])


def _order(titles: dict[str, Any]) -> Iterator[str]:
    ends = (READING, LAST)
    yield from (title for title in titles if title not in ends and titles[title])
    yield from (title for title in ends if title in titles)


command = functools.partial(click.command, cls=Command)
"""``click.command`` for the commands of the command line."""
