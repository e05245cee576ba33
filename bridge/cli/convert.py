"""``bridge convert``: weights in another format."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli import manners, options
from bridge.errors import UsageError
from bridge.files.writers import FORMATS, format_of


@manners.command()
@options.files
@options.reading
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="The file to write; its suffix decides the format."
)
@click.option("--format", "format_", metavar="NAME", help=f"The format, for other suffixes: {', '.join(FORMATS)}.")
@click.option("--half", is_flag=True, help="Keep float16 in a .caffemodel, as NVCaffe does; BVLC Caffe cannot read it.")
@click.option(
    "--to-dialect",
    metavar="NAME",
    help="Fork whose field numbers a .caffemodel gets, where forks differ.  [default: --dialect]",
)
def convert(
    files: tuple[str, ...], output: str, format_: str | None, half: bool, to_dialect: str | None, **given: Any
) -> None:
    """Write weights as .npz, .safetensors, .caffemodel, .caffemodel.h5 or Chainer's .npz."""
    import bridge

    options.guard(files, [output])
    if to_dialect is None and format_of(output, format_).name == "caffemodel":
        to_dialect = given["dialect"]
    net = options.load_net(files, given)
    if not net.reader:
        raise UsageError("holds no weights", where=net.where, hint="give the file of weights as well")
    bridge.save(net, output, format_, half=half or None, dialect=to_dialect)
    for remark in net.notes:
        options.note(remark)
    blobs = sum(len(layer.blobs) for layer in net.layers)
    click.echo(f"{output}: {blobs} blobs of {sum(1 for layer in net.layers if layer.blobs)} layers")
