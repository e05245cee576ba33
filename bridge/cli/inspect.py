"""``bridge inspect``: what layers compute, take and cost."""

from __future__ import annotations

import os
from typing import Any

import click

from bridge.cli import manners, options, printable
from bridge.schema import times
from bridge.show.table import print_table

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@manners.command()
@options.files
@options.reading
@click.option("--layer", metavar="NAME", help="Show this layer with parameters, values and unread fields.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=1,3,224,224", help="Extents of an input.")
@options.selecting
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with everything, to stdout.")
def inspect(files: tuple[str, ...], layer: str | None, as_json: bool, **given: Any) -> None:
    """Show output shapes, multiply-adds, memory and values of a net's layers.

    Behind the files may stand the name of a layer, as --layer has it. Multiply-adds are those of layers that compute
    sums, such as convolutions.
    """
    from bridge.caffe_files.inference import inference_net
    from bridge.files.inspection import inspect_net

    if layer is None and len(files) > 1 and not _is_file(files[-1]):
        *others, layer = files
        files = tuple(others)
    shapes, texts = options.closed_shapes(given.pop("inputs")), given.pop("outputs")
    net = options.load_net(files, given)
    net = inference_net(net, shapes, options.output_blobs(texts, net))
    data = inspect_net(net, shapes, layer=layer, values=as_json or layer is not None)
    if as_json:
        options.write_json({**data, "notes": list(net.notes)}, "-")
        return
    if layer is None:
        _show_net(data)
    else:
        for one in data["layers"]:
            _show_layer(one)
    if data["problem"]:
        options.note(f"no shapes are known: {data['problem']}")
    for remark in net.notes:
        options.note(remark)


def _is_file(name: str) -> bool:
    """Whether an argument is a file, or is meant to be one and missing."""
    return os.path.exists(name) or name.endswith((".prototxt", ".caffemodel", ".h5", ".onnx", ".npz", ".safetensors"))


def _show_net(data: dict[str, Any]) -> None:
    rows = []
    for one in data["layers"]:
        values = sum(blob["values"] for blob in one["blobs"])
        first = [one["name"], one["type"]]
        last = [_short(one["multiply_adds"]), f"{values:,}" if values else ""]
        for top in one["tops"] or [{"shape": None}]:
            rows.append([*first, times(top["shape"]) if top["shape"] is not None else "", *last])
            first, last = ["", ""], ["", ""]
    print_table("", ["layer", "type", "output", "mul-adds", "values"], rows, names=2)
    totals = data["totals"]
    click.echo()
    click.echo(f"{totals['layers']} layers, {totals['values']:,} values in {totals['weight_bytes']:,} bytes")
    if totals["multiply_adds"] is not None:
        click.echo(f"{totals['multiply_adds']:,} multiply-adds, {totals['top_bytes']:,} bytes of outputs in float32")


def _show_layer(one: dict[str, Any]) -> None:
    click.echo(printable(f"layer   {one['name']} ({one['type']})"))
    for name in one["bottoms"]:
        click.echo(printable(f"reads   {name}"))
    for top in one["tops"]:
        shape = f"  {times(top['shape'])}, {top['bytes']:,} bytes" if top["shape"] is not None else ""
        click.echo(printable(f"writes  {top['name']}{shape}"))
    if one["multiply_adds"] is not None:
        click.echo(f"{one['multiply_adds']:,} multiply-adds")
    if one["parameters"]:
        click.echo()
        print_table("", ["parameter", "value"], [[name, _text(value)] for name, value in one["parameters"].items()])
    for blob in one["blobs"]:
        click.echo()
        click.echo(f"blob    {blob['role']}  {times(blob['shape'])}, {blob['dtype']}, {blob['bytes']:,} bytes")
        rows = [[name, _text(blob[name])] for name in ("min", "max", "mean", "deviation", "zeros", "nan", "infinite")]
        print_table("", ["of the values", ""], rows)
    if one["unread"]:
        click.echo()
        rows = [[field["field"], _text(field["value"]), _reason(field["reason"])] for field in one["unread"]]
        print_table("", ["field that is not read", "value", "why"], rows, names=2, prose=True)
    if one["problem"]:
        options.note(one["problem"])


def _reason(reason: str) -> str:
    return f"has no effect: it {reason}" if reason else "may change what the layer computes"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _short(number: int | None) -> str:
    """A number with three digits: 231211008 is 231 M."""
    if number is None:
        return ""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
