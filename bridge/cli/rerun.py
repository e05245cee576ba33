"""The command of a run, kept in its folder, so that ``bridge finetune --resume RUN`` alone goes on."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from bridge.errors import FormatError, MissingFileError, UsageError

COMMAND_FILE = "command.txt"


def given_words(context: click.Context) -> list[str]:
    """The words of a command line that gives the same options as this one, without --resume, -v and -q."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        known = name in context.params and name != "resume"
        if known and context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            words += _words(parameter, context.params[name])
    return words


def _words(parameter: click.Parameter, value: object) -> list[str]:
    values = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
    if isinstance(parameter, click.Argument):
        return values
    name = max(parameter.opts if value is not False else parameter.secondary_opts, key=len)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [name]
    return [word for each in values for word in (name, each)]


def write_command(folder: Path, words: list[str]) -> None:
    """Write the command into the run's folder: where it was given, and what.

    Raises:
        OutputError: The file cannot be written.
    """
    from bridge.files.atomic import atomic  # it imports NumPy, whose kernels the command chooses before

    text = f"cd {shlex.quote(os.getcwd())}\nbridge finetune {shlex.join(words)}\n"
    with atomic(folder / COMMAND_FILE) as file:
        file.write(text.encode(errors="surrogateescape"))


def stored_words(folder: Path) -> list[str]:
    """The words of the command that began a run; the process goes to the folder where it was given.

    Raises:
        MissingFileError: The folder holds no command.
        FormatError: The file is not what finetune wrote.
        UsageError: The folder where it was given is gone.
    """
    path = folder / COMMAND_FILE
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
    except OSError:
        hint = "give the whole command again, with -o RUN --resume"
        raise MissingFileError("holds no command.txt", where=str(folder), hint=hint) from None
    try:
        first, second = (shlex.split(line) for line in text.splitlines())
        (_, place), (*_, command) = first, second[:2]
    except ValueError:
        raise FormatError("is not what finetune wrote", where=str(path)) from None
    if command != "finetune":
        raise FormatError("is not what finetune wrote", where=str(path))
    try:
        os.chdir(place)
    except OSError:
        raise UsageError(f"the run began in {place}, which cannot be entered", where=str(path)) from None
    return second[2:]
