"""``bridge convert``: weights in another format."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli import options
from bridge.errors import UsageError
from bridge.writers import FORMATS


@click.command()
@options.files
@options.reading
@click.option("-o", "--output", required=True, type=click.Path(), help="The file to write; its suffix is its format.")
@click.option(
    "--format", "format_", metavar="NAME", help=f"The format, where the suffix does not tell: {', '.join(FORMATS)}."
)
def convert(files: tuple[str, ...], output: str, format_: str | None, **given: Any) -> None:
    """Write weights as .npz, .safetensors, .caffemodel, .caffemodel.h5 or Chainer's .npz."""
    import bridge

    net = options.load(files, given)
    if not net.reader:
        raise UsageError("holds no weights", where=net.where, hint="give the file of weights as well")
    bridge.save(net, output, format=format_)
    for remark in net.notes:
        options.note(remark)
    blobs = sum(len(layer.blobs) for layer in net.layers)
    click.echo(f"{output}: {blobs} blobs of {sum(1 for layer in net.layers if layer.blobs)} layers")
