"""``bridge migrate``: a folder of models at once."""

from __future__ import annotations

import click

from bridge.cli import manners, printable
from bridge.cli.manners import VOICE


@manners.command()
@click.argument("folder", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="The folder for the ONNX files and index.html.")
@click.option("--jobs", type=click.IntRange(1), default=None, help="Models at a time.  [default: half the processors]")
@click.option("--list", "only_list", is_flag=True, help="Show the pairs that are found, and convert nothing.")
@click.pass_context
def migrate(ctx: click.Context, /, folder: str, output: str, jobs: int | None, only_list: bool) -> None:
    """Export and verify every model below FOLDER, each in a process of its own.

    Prototxts and weights are paired by the names of their layers. What was done before, and has not changed, is not
    done again. OUTPUT/index.html says what was converted and proven, and why the rest was not.

    Exit status: 0 every model is converted and proven, 1 one is not, 2 there is none.
    """
    from bridge.exporting.migrate import find_pairs, migrate_folder
    from bridge.verification.results import plural

    if only_list:
        for pair in find_pairs(folder):
            click.echo(printable(f"{pair.weights}  {pair.definition or '-'}  {pair.fit:.0%}"))
        return
    outcomes = migrate_folder(folder, output, jobs=jobs, progress=VOICE.progress)
    proven = sum(outcome.proven for outcome in outcomes)
    click.echo(f"{output}/index.html: {plural(len(outcomes), 'model')}, {proven} converted and proven")
    ctx.exit(2 if not outcomes else 0 if proven == len(outcomes) else 1)
