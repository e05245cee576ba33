"""``bridge predict``: classify images with a fine-tuned net."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli import manners, printable


@manners.command()
@click.argument("run_dir", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path())
@click.option("-k", "--top", default=5, show_default=True, type=click.IntRange(1), help="How many classes to print.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout.")
def predict(run_dir: str, images: tuple[str, ...], top: int, as_json: bool) -> None:
    """Print the most likely classes of each IMAGE, or a regression's numbers, with the model of a finetune run."""
    from bridge.cli.options import write_json
    from bridge.finetuning.predict import classify

    found = classify(run_dir, images, top)
    if as_json:
        write_json([_record(image, ranked) for image, ranked in zip(images, found, strict=True)], "-")
        return
    for image, ranked in zip(images, found, strict=True):
        click.echo(printable(image))
        for entry in ranked:
            click.echo(f"  {entry['score']:.4f}  {entry['class']}" if "class" in entry else f"  {entry['value']:.6g}")


def _record(image: str, ranked: list[dict[str, Any]]) -> dict[str, Any]:
    if ranked and "value" in ranked[0]:
        return {"image": image, "values": [entry["value"] for entry in ranked]}
    return {"image": image, "classes": ranked}
