"""``bridge demo``: every step on a small trained model."""

from __future__ import annotations

import sys
import time

import click

from bridge.cli import manners
from bridge.cli.manners import VOICE
from bridge.show.table import print_table


@manners.command()
def demo() -> None:
    """Read, verify, export and fine-tune a small trained model; takes a minute or two."""
    from bridge.cli import demonstration as way
    from bridge.cli.progress import Progress

    start = time.perf_counter()
    with Progress(hidden=VOICE.quiet or not sys.stderr.isatty()) as progress:
        found = way.run(lambda text: VOICE.progress(f"{text} ..."), progress.step)
    print_table("weight bridge, the whole way", ("what", "found"), found, prose=True)
    click.echo()
    click.echo(f"done in {time.perf_counter() - start:.0f} s")
