"""``bridge verify``: compare readers, engines and files, layer by layer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import manners, options
from bridge.cli.manners import VOICE, section
from bridge.cli.reports import REPORT_FORMATS, show
from bridge.errors import BridgeError, UsageError

if TYPE_CHECKING:
    from bridge.verification import Report


def _list_checks(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from bridge.verification.checks import CHECKS

        for entry in CHECKS.values():
            click.echo(f"{entry.name:18}{entry.demands}")
        ctx.exit()


class _Verify(manners.Command):
    """A command whose ``--against`` takes FILES, up to two, as the command itself does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _repeated(args, "--against"))


def _repeated(args: list[str], option: str) -> list[str]:
    """``--against A B`` as ``--against A --against B``: click's options take a fixed number of values.

    Only after the command's own FILES; before them, the second file could belong to either.
    """
    result: list[str] = []
    if not args or args[0].startswith("-"):
        return args
    for place, argument in enumerate(args):
        second = args[max(0, place - 2) : place][:1] == [option] and not argument.startswith("-")
        if second and not args[place - 1].startswith("-"):
            result.append(option)
        result.append(argument)
    return result


@click.command(cls=_Verify)
@options.files
@options.reading
@click.option(
    "--against",
    "against",
    multiple=True,
    metavar="FILES",
    type=click.Path(),
    help="A second model: [PROTOTXT] WEIGHTS in any order.",
)
@click.option("--recorded", type=click.Path(), metavar="IO.npz", help="Recorded inputs and outputs to compare with.")
@section("What is compared")
@click.option(
    "--record", type=click.Path(), metavar="IO.npz", help="Write such a file with the outputs of the first engine."
)
@click.option("--readers", metavar="A,B", help="Readers to compare, or none.  [default: all that work here]")
@click.option("--engines", metavar="A,B", help="Engines to compare, or none.  [default: all that work here]")
@click.option("--isolate", is_flag=True, help="Run each layer on its own, with the inputs that the other side has.")
@click.option("--subset", is_flag=True, help="Allow inputs, outputs, layers and arrays that only one side has.")
@section("Bounds")
@click.option("--rtol", metavar="T[,BLOB:T]", help="Relative tolerance of outputs.  [default: a bound for each layer]")
@click.option("--atol", metavar="T[,BLOB:T]", help="Absolute tolerance of outputs.")
@section("Inputs")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of random inputs.")
@click.option("--draws", default=6, show_default=True, type=click.IntRange(1), help="Draws of random inputs, at most.")
@click.option("--range", "--value-range", "value_range", metavar="LO,HI", help="Range of random inputs.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SHAPE|FILE",
    help="An input's extents (1,3,224,224), or its values: .npy, .npz or an image.",
)
@options.selecting
@click.option("--save-inputs", type=click.Path(), metavar="F.npz", help="Write the inputs that were used.")
@section("Consistency checks")
@click.option(
    "--list-checks",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_checks,
    help="List the consistency checks and exit.",
)
@click.option("--check", "checks", multiple=True, metavar="NAME", help="Run only this check; repeatable.")
@click.option("--skip-check", "skip_checks", multiple=True, metavar="NAME", help="Do not run this check; repeatable.")
@section("Reports")
@click.option(
    "--format",
    "format_",
    type=click.Choice(REPORT_FORMATS),
    default="text",
    show_default=True,
    help="What stdout gets; summary is what differs, and the verdict.",
)
@click.option("--json", "json_file", metavar="F", help="Write the report as JSON; - is stdout.")
@click.option("--html", "html_file", type=click.Path(), metavar="F", help="Write the report as one HTML page.")
@click.pass_context
def verify(ctx: click.Context, /, format_: str, json_file: str | None, html_file: str | None, **given: Any) -> None:
    """Compare readers, engines or files, layer by layer.

    Exit status: 0 it holds, 1 a difference was found, 2 nothing could be compared.
    """
    named = [text.rpartition("=")[2] for text in given["inputs"]]
    sources = [*given["files"], *given["against"], given["recorded"], *named]
    targets = [html_file, None if json_file == "-" else json_file, given["record"], given["save_inputs"]]
    options.guard(sources, targets)
    report, error = _verified(given)
    form = "json" if json_file == "-" else format_
    if error is None or form not in ("text", "summary"):  # for people, stderr says what could not be done
        show(report, form)
    if html_file is not None:
        report.write_html(html_file)
    if json_file not in (None, "-"):
        options.write_json(report.to_dict(), str(json_file))
    if error is not None:
        raise error
    if report.status == 2:
        click.echo(f"bridge: {'; '.join(report.missing)}", err=True)
    ctx.exit(report.status)


def _verified(given: dict[str, Any]) -> tuple[Report, BridgeError | None]:
    """The report, and the error that kept it from being more than what could not be done."""
    from bridge.verification import Report
    from bridge.verification import verify as run

    files, against = given["files"], given["against"]
    try:
        reading = options.reading_arguments(given)
        given.pop("files")
        report = run(*files, **_arguments(given), **reading, progress=_progress)
    except BridgeError as error:
        _progress("")
        return Report(files, against, undone=(error.text,)), error
    _progress("")
    return report, None


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The options as arguments of :func:`bridge.verify`."""
    from bridge.verification.arrays import read_inputs

    return {
        **given,
        "against": given["against"] or None,
        "readers": _names(given["readers"]),
        "engines": _names(given["engines"]),
        "rtol": _tolerance("--rtol", given["rtol"]),
        "atol": _tolerance("--atol", given["atol"]),
        "value_range": None if given["value_range"] is None else _numbers("--range", given["value_range"]),
        "inputs": read_inputs(given["inputs"]),
        "outputs": options.output_blobs(given["outputs"], None),
        "checks": given["checks"] or None,
    }


def _names(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas; ``none`` gives no names."""
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}", expected="numbers between commas") from None


def _tolerance(option: str, text: str | None) -> dict[str, float | None] | None:
    """``1e-4`` or ``1e-4,prob:1e-3`` as numbers by blob, ``""`` for the others."""
    if text is None:
        return None
    table: dict[str, float | None] = {}
    for part in text.split(","):
        blob, _, number = part.rpartition(":")
        if blob.strip() in table:
            raise UsageError(f"{option} {text}: gives two numbers for {blob.strip() or 'all blobs'}")
        table[blob.strip()] = _numbers(option, number)[0]
    return table


def _progress(message: str) -> None:
    if VOICE.verbose:
        VOICE.step(message or "compared")
    elif sys.stderr.isatty() and not VOICE.quiet:
        click.echo(f"\r\x1b[2K{message[:78]}", nl=False, err=True)
