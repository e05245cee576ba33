"""``bridge predict``: classify images with a fine-tuned net."""

from __future__ import annotations

import click


@click.command()
@click.argument("run_dir", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path())
@click.option("-k", "--top", default=5, show_default=True, type=click.IntRange(1), help="How many classes to print.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout.")
def predict(run_dir: str, images: tuple[str, ...], top: int, as_json: bool) -> None:
    """Print the most likely classes of each IMAGE by the model of a finetune run."""
    from bridge.cli.options import write_json
    from bridge.finetune.predict import classify

    found = classify(run_dir, images, top)
    if as_json:
        write_json([{"image": image, "classes": ranked} for image, ranked in zip(images, found, strict=True)], "-")
        return
    for image, ranked in zip(images, found, strict=True):
        click.echo(image)
        for entry in ranked:
            click.echo(f"  {entry['score']:.4f}  {entry['class']}")
