"""What several commands take: files, how to read them, and how to say where results go."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from bridge.cli import printable
from bridge.errors import UsageError
from bridge.schema import Net, count, times

_Command = TypeVar("_Command", bound=Callable[..., Any])

files = click.argument("files", nargs=-1, required=True, metavar="FILES", type=click.Path())


def reading(function: _Command) -> _Command:
    """The options that say how FILES are read; gathered by :func:`load`."""
    for option in reversed(
        (
            click.option(
                "--reader",
                default="auto",
                show_default=True,
                metavar="NAME",
                help="Which reader takes the weights; bridge doctor lists them.",
            ),
            click.option(
                "--phase",
                type=click.Choice(["TEST", "TRAIN"]),
                default="TEST",
                show_default=True,
                help="Which layers of the prototxt to take.",
            ),
            click.option("--stage", "stages", multiple=True, help="A stage of Caffe's NetState; may be repeated."),
            click.option(
                "--zero-scale-factor",
                type=click.Choice(["bvlc", "nvcaffe"]),
                default="bvlc",
                show_default=True,
                help="Whose reading of a BatchNorm with scale factor 0 and real statistics.",
            ),
            click.option(
                "--dialect",
                metavar="NAME",
                help="Whose numbers the parameter fields of a caffemodel have; an unknown name lists them.",
            ),
            click.option(
                "--pycaffe-python", default=None, help="Interpreter with the real Caffe (BRIDGE_PYCAFFE_PYTHON)."
            ),
            click.option(
                "--memory",
                metavar="SIZE",
                expose_value=False,
                callback=_memory,
                help="The most memory to take, such as 4G; half of the machine's by default.",
            ),
            click.option(
                "--plugin", "plugins", multiple=True, type=click.Path(), help="A Python file with your own layer types."
            ),
        )
    ):
        function = option(function)
    return function


def _memory(ctx: click.Context, _: click.Parameter, text: str | None) -> None:
    """Set the budget, and let the system hold the process to it as well."""
    if text is not None and not ctx.resilient_parsing:
        from bridge.limits.budget import bind_process, set_limit

        set_limit(text)
        bind_process()


def guard(sources: Iterable[Any], targets: Iterable[Any]) -> None:
    """Begin a command: from here on it writes over nothing that it reads.

    Args:
        sources: What is named to be read; what is no path is passed over.
        targets: What is named to be written.
    """
    from bridge.files.atomic import end_command, start_command
    from bridge.limits.budget import bind_process

    bind_process()
    start_command(*([path for path in paths if isinstance(path, (str, Path))] for paths in (sources, targets)))
    click.get_current_context().call_on_close(end_command)


READING = ("reader", "phase", "stages", "zero_scale_factor", "dialect", "pycaffe_python", "plugins")


def load(files: tuple[str, ...], options: dict[str, Any]) -> Net:
    """The net that the files and the options of :func:`reading` say; takes those out of ``options``."""
    import bridge

    return bridge.load(*files, **reading_arguments(options))


def reading_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :func:`reading` out of ``options``, as arguments of ``bridge.load``."""
    given = {name: options.pop(name) for name in READING}
    for plugin in given.pop("plugins"):
        from bridge.layers.plugins import load_plugin

        load_plugin(plugin)
    given["python"] = given.pop("pycaffe_python")
    return {name: value for name, value in given.items() if value not in (None, ())}


def parse_shape(text: str) -> tuple[str, list[int | str]]:
    """``data=1,3,224,224`` or ``data=batch,3,height,width``: a blob and its extents."""
    name, _, extents = text.rpartition("=")
    parts = [part.strip() for part in extents.split(",")]
    if not name or not all(parts):
        raise UsageError(f"--input {text}: expected NAME=1,3,224,224")
    shape: list[int | str] = []
    for part in parts:
        if part.removeprefix("-").isdecimal():
            if int(part) < 1:
                raise UsageError(f"--input {text}: extent {part} is not positive", hint="a name leaves an extent open")
            shape.append(int(part))
        else:
            shape.append(part)
    return name, shape


def input_shapes(texts: tuple[str, ...]) -> dict[str, list[int | str]]:
    """The extents of input blobs from repeated ``--input`` options."""
    shapes: dict[str, list[int | str]] = {}
    for text in texts:
        name, shape = parse_shape(text)
        if name in shapes:
            raise UsageError(f"--input {text}: the extents of '{name}' were given before, expected once")
        shapes[name] = shape
    return shapes


def mean(text: str | None) -> np.ndarray:
    """A mean from ``104,117,123``, from one number, or from a .binaryproto or .npy.

    Returns:
        float32 (values,), or (C, H, W) from a file; empty for none.
    """
    if text is None:
        return np.zeros(0, np.float32)
    try:
        return np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        return _mean_image(text)


def _mean_image(path: str) -> np.ndarray:
    from bridge.files.readers import read_mean
    from bridge.verification.arrays import read_array

    numpy = path.endswith(".npy")
    image = read_array(Path(path), "mean", None) if numpy else np.asarray(read_mean(path).numpy(), np.float32)
    if image.size != count(image.shape[-3:]) or not image.size:
        raise UsageError(f"--mean {path}: is {times(image.shape)}, expected one image of C x H x W values")
    return image.reshape(image.shape[-3:])


def note(message: str) -> None:
    """A remark for the user, on stderr."""
    click.echo(f"note: {printable(message)}", err=True)


def write_json(data: Any, target: str) -> None:
    """JSON to a file, or to stdout for ``-``."""
    import json

    text = json.dumps(data, indent=2, ensure_ascii=False)
    if target == "-":
        click.echo(text.encode(errors="backslashreplace").decode())
        return
    from bridge.files.atomic import atomic

    with atomic(target) as file:
        file.write(text.encode(errors="backslashreplace") + b"\n")  # half a character: JSON has it as an escape


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, each row one line; on a terminal, the first column folds to what room there is."""
    lines = [columns, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths[1:])
        widths[0] = min(widths[0], max(room, 10))
    if title:
        click.echo(f"{title}\n")
    for first, *rest in lines:
        parts = [first[at : at + widths[0]] for at in range(0, len(first), widths[0])] or [""]
        cells = [f"{cell:{width}}" for cell, width in zip([parts[0], *rest], widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
        for part in parts[1:]:
            click.echo(part)
    click.echo()
