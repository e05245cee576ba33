"""Options of several commands: files, how to read them, where results go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bridge.cli import printable
from bridge.cli.manners import FIRST, READING, VOICE, section
from bridge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np  # not imported to run: bridge finetune chooses NumPy's kernels before it is

    from bridge.schema import Net

_Command = TypeVar("_Command", bound=Callable[..., Any])

files = click.argument("files", nargs=-1, required=True, metavar="FILES", type=click.Path())


def _memory(ctx: click.Context, _: click.Parameter, text: str | None) -> None:
    """Set the budget, and let the system hold the process to it as well."""
    if text is not None and not ctx.resilient_parsing:
        from bridge.limits.budget import bind_process, set_limit

        set_limit(text)
        bind_process()


_READING_OPTIONS = (
    click.option(
        "--reader",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="Reader of the weights; bridge doctor lists all.",
    ),
    click.option(
        "--phase",
        type=click.Choice(["TEST", "TRAIN"]),
        default="TEST",
        show_default=True,
        help="Phase whose layers of the prototxt are used.",
    ),
    click.option("--stage", "stages", multiple=True, help="A stage of Caffe's NetState; repeatable."),
    click.option("--level", default=0, show_default=True, help="The level of Caffe's NetState."),
    click.option(
        "--allow-unknown-fields",
        is_flag=True,
        help="Go on although fields that nothing reads may change a result.",
    ),
    click.option(
        "--zero-scale-factor",
        type=click.Choice(["bvlc", "nvcaffe"]),
        default="bvlc",
        show_default=True,
        help="How to read a BatchNorm with scale factor 0 and statistics that are not 0: as this Caffe does.",
    ),
    click.option(
        "--dialect",
        metavar="NAME",
        help="Fork whose field numbers the caffemodel has; an unknown name lists all forks.",
    ),
    click.option("--pycaffe-python", default=None, help="Interpreter with the real Caffe (BRIDGE_PYCAFFE_PYTHON)."),
    click.option(
        "--memory",
        metavar="SIZE",
        expose_value=False,
        callback=_memory,
        help="The most memory to take, such as 4G; half of the machine's by default.",
    ),
    click.option(
        "--plugin",
        "plugins",
        multiple=True,
        type=click.Path(),
        help="A Python file with your own layer types; repeatable.",
    ),
)


def reading(function: _Command) -> _Command:
    """Add the options that say how FILES are read; :func:`load_net` takes their values."""
    section(FIRST)(function)  # what is declared below and has no section yet
    for option in reversed(_READING_OPTIONS):
        function = option(function)
    return section(READING)(function)


_OF_READING = (
    "reader", "phase", "stages", "level", "zero_scale_factor", "allow_unknown_fields", "dialect", "pycaffe_python",
    "plugins",
)  # fmt: skip


def guard(sources: Iterable[Any], targets: Iterable[Any]) -> None:
    """Begin a command: from here on it writes over nothing that it reads.

    Args:
        sources: The files to read; what is not a path is left out.
        targets: The files to write.
    """
    from bridge.files.atomic import end_command, start_command
    from bridge.limits.budget import bind_process

    bind_process()
    start_command(*([path for path in paths if isinstance(path, (str, Path))] for paths in (sources, targets)))
    click.get_current_context().call_on_close(end_command)


def load_net(files: tuple[str, ...], options: dict[str, Any]) -> Net:
    """Load the net; the options of :func:`reading` are removed from ``options``."""
    import bridge

    VOICE.step(f"reading {' '.join(files)}")
    net = bridge.load(*files, **reading_arguments(options))
    VOICE.step(f"{len(net)} layers" + (f", by the reader {net.reader}" if net.reader else ""))
    return net


def reading_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of :func:`reading` from ``options``, and return them as arguments of ``bridge.load``."""
    given = {name: options.pop(name) for name in _OF_READING}
    for plugin in given.pop("plugins"):
        from bridge.layers.plugins import load_plugin

        load_plugin(plugin)
    return {name: value for name, value in given.items() if value not in (None, (), False)}


def parse_shape(text: str) -> tuple[str, list[int | str]]:
    """``data=1,3,224,224`` or ``data=batch,3,height,width``: a blob and its extents."""
    name, _, extents = text.rpartition("=")
    parts = [part.strip() for part in extents.split(",")]
    if not name or not all(parts):
        raise UsageError(f"--input {text}", expected="NAME=1,3,224,224")
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
            raise UsageError(f"--input {text}: the extents of '{name}' were given before", expected="once")
        shapes[name] = shape
    return shapes


def closed_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The extents of repeated ``--input`` options, all of them numbers.

    Raises:
        UsageError: One is left open.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, extents in input_shapes(texts).items():
        numbers = tuple(extent for extent in extents if isinstance(extent, int))
        if len(numbers) != len(extents):
            raise UsageError(f"--input {name}: an extent is open", expected="numbers")
        shapes[name] = numbers
    return shapes


selecting = click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="BLOB",
    help="A blob to put out, or several: a,b; repeatable. What none of them needs is left out.",
)


def output_blobs(texts: tuple[str, ...], net: Net | None) -> tuple[str, ...]:
    """The blobs of repeated ``--output`` options. A blob of ``net`` whose own name has a comma is taken as it is.

    Raises:
        UsageError: A name is empty.
    """
    written = {top for layer in net.layers for top in layer.tops} if net is not None else set()
    names = tuple(name for text in texts for name in ([text] if text in written else text.split(",")))
    if not all(names):
        raise UsageError(f"--output {','.join(texts)}: a blob's name is empty", hint="write --output a,b")
    return names


def height_width(text: str | None) -> tuple[int, int] | None:
    """The height and the width of ``--resize 224,224``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--resize {text}", expected="a height and a width, such as 224,224")
    return int(parts[0]), int(parts[1])


def mean(text: str | None) -> np.ndarray:
    """A mean from ``104,117,123``, from one number, or from a .binaryproto or .npy.

    Returns:
        float32 (values,), or (C, H, W) from a file; empty for none.
    """
    import numpy as np

    if text is None:
        return np.zeros(0, np.float32)
    try:
        return np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError:
        return _mean_image(text)


def _mean_image(path: str) -> np.ndarray:
    import numpy as np

    from bridge.files.readers import read_mean
    from bridge.schema import count, times
    from bridge.verification.arrays import read_array

    numpy = path.endswith(".npy")
    image = read_array(Path(path), "mean", None) if numpy else np.asarray(read_mean(path).numpy(), np.float32)
    if image.size != count(image.shape[-3:]) or not image.size:
        raise UsageError(f"--mean {path}: is {times(image.shape)}", expected="one image of C x H x W values")
    return image.reshape(image.shape[-3:])


def note(message: str) -> None:
    """A remark for the user, on stderr."""
    if not VOICE.quiet:
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
