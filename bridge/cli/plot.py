"""``bridge plot``: a picture of a net."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli import manners, options
from bridge.cli.manners import section
from bridge.errors import UsageError


@manners.command()
@options.files
@options.reading
@click.option("-o", "--output", required=True, type=click.Path(), help="The picture: .png, .svg or .html.")
@click.option("--filters", metavar="LAYER", help="The kernels of this layer, tiled; in colour where they are.")
@click.option("--histograms", is_flag=True, help="How the values of each blob are spread.")
@click.option("--graph", is_flag=True, help="The net as a drawing, repeated blocks drawn once.")
@click.option("--features", metavar="IMAGE", type=click.Path(), help="What layers make of this image.")
@section("For --features")
@click.option("--layer", default="", metavar="NAME", help="Only this layer.  [default: those with weights, 12 at most]")
@click.option("--input", "inputs", multiple=True, metavar="NAME=1,3,224,224", help="Extents of the input.")
@click.option("--mean", help="Subtract this mean first: b,g,r or one number, or a .binaryproto or .npy.")
@click.option("--scale", default=1.0, show_default=True, help="Multiply by this after the mean is subtracted.")
def plot(files: tuple[str, ...], output: str, **given: Any) -> None:
    """Draw a net: filters, histograms, a graph, or what its layers see."""
    from bridge.plotting import draw_net
    from bridge.plotting.files import WHATS, feature_maps

    wanted = [what for what in WHATS if given[what]]
    if len(wanted) != 1:
        flags = ", ".join(f"--{what}" for what in WHATS)
        raise UsageError(f"expected one of {flags}, found {len(wanted)}", hint="one picture at a time")
    options.guard([*files, given["features"], given["mean"]], [output])
    net = options.load_net(files, given)
    maps = None
    if given["features"]:
        shapes = options.closed_shapes(given["inputs"])
        mean = options.mean(given["mean"])
        maps = feature_maps(net, given["features"], given["layer"], shapes, mean, given["scale"])
    draw_net(net, output, wanted[0], layer=given["filters"] or "", maps=maps)
    click.echo(f"{output}: {wanted[0]} of {net.name or net.where}")
