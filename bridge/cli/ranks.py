"""The processes of one run under ``mpiexec``: they end together, and rank 0 speaks for all."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import click

from bridge.cli import printable
from bridge.errors import BridgeError

_PATIENCE = 2.0
"""Seconds for which ranks other than 0 hold back an error: rank 0 usually has the same and says it once."""


@contextlib.contextmanager
def all_or_none(communicator: str) -> Iterator[bool]:
    """End all processes when one fails, because the others would wait for it for ever.

    Args:
        communicator: ChainerMN's communicator; empty where this process is on its own.

    Yields:
        Whether this is rank 0.
    """
    if not communicator:
        yield True
        return
    from bridge.finetuning.parallel import world

    ranks = world()
    try:
        yield ranks.rank == 0
    except (Exception, KeyboardInterrupt) as error:
        if ranks.rank:
            time.sleep(_PATIENCE)
        text = str(error.args[0]) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
        click.echo(f"bridge: rank {ranks.rank}: {printable(text)}", err=True)
        if isinstance(error, BridgeError) and error.hint:
            click.echo(f"  hint: {printable(error.hint)}", err=True)
        sys.stderr.flush()
        status = 130 if isinstance(error, KeyboardInterrupt) else 2
        ranks.Abort(status)
        os._exit(status)  # MPI may take a moment to end this process, and the error would be said twice
