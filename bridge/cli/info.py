"""``bridge info``: what a model file holds."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from bridge.caffe_files.inference import select_outputs
from bridge.cli import manners, options, printable
from bridge.schema import Net, Opaque, times
from bridge.schema.net import distinct, layer_rows
from bridge.show.table import print_table


@manners.command()
@options.files
@options.reading
@options.selecting
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout.")
def info(files: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Show layers, types and blobs with role, shape, dtype and group."""
    from bridge.files import readers

    options.guard(files, ())
    if len(files) == 1 and readers.kind_of(files[0]).name == "binaryproto":
        _mean(files[0], as_json)
        return
    net = options.load_net(files, given)
    if outputs := options.output_blobs(given["outputs"], net):
        net = select_outputs(net, outputs)
    if as_json:
        options.write_json(describe(net), "-")
        return
    _show(net)


def describe(net: Net) -> dict[str, Any]:
    """The net as plain data, as ``--json`` writes it."""
    from bridge.files import readers

    weights = net.sources[-1] if net.reader else None
    return {
        "name": net.name,
        "sources": list(net.sources),
        "reader": net.reader,
        "readers": {name: _state(name) for name in readers.readers_of(weights)} if weights else {},
        "inputs": {name: list(shape) if shape is not None else None for name, shape in net.inputs.items()},
        "outputs": list(net.outputs),
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "bottoms": list(layer.bottoms),
                "tops": list(layer.tops),
                "group": layer.group,
                "problem": layer.uncovered or (layer.problem if isinstance(layer, Opaque) else ""),
                "blobs": [
                    {"role": role, "shape": list(blob.shape), "dtype": str(blob.dtype), "values": blob.size}
                    for role, blob in layer.blobs.entries()
                ],
            }
            for layer in net.layers
        ],
        "values": sum(blob.size for blob in distinct(net.layers)),
        "bytes": sum(blob.nbytes for blob in distinct(net.layers)),
        "notes": list(net.notes),
    }


def _state(reader: str) -> str:
    from bridge.files import readers

    return readers.status(reader).problem or "works"


def _show(net: Net) -> None:
    data = describe(net)
    for source in net.sources:
        click.echo(f"file    {source}")
    if net.name:
        click.echo(f"net     {printable(net.name)}")
    click.echo()
    columns, *rows = layer_rows(net.layers)
    print_table("", columns, rows, names=2)
    click.echo()
    for name, shape in data["inputs"].items():
        click.echo(f"input   {printable(name)}  {times(shape) if shape is not None else 'of unknown shape'}")
    for name in data["outputs"]:
        click.echo(f"output  {printable(name)}")
    click.echo(f"{len(data['layers'])} layers, {data['values']:,} values, {data['bytes']:,} bytes")
    for name, state in data["readers"].items():
        click.echo(f"reader {name}: {state}{' (used)' if name == net.reader else ''}")
    for layer in data["layers"]:
        if layer["problem"]:
            options.note(f"layer '{layer['name']}' ({layer['type']}): {layer['problem']}")
    for remark in data["notes"]:
        options.note(remark)


def _mean(path: str, as_json: bool) -> None:
    from bridge.files.readers import read_mean

    blob = read_mean(path)
    values = blob.numpy()
    planes = values.reshape(-1, *values.shape[-2:]) if values.ndim >= 2 and values.size else np.zeros((0, 1, 1))
    channels = planes.mean(axis=(1, 2), dtype=np.float64).tolist()
    if as_json:
        described = {"kind": "mean", "shape": list(blob.shape), "dtype": str(blob.dtype), "channels": channels}
        options.write_json(described, "-")
        return
    click.echo(f"{path}: a mean image, {times(blob.shape)}, {blob.dtype}")
    click.echo("mean per channel: " + ", ".join(f"{value:.4f}" for value in channels))
