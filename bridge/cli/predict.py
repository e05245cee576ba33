"""``bridge predict``: classify images with a fine-tuned net."""

from __future__ import annotations

import csv
import io
import sys
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import manners, printable

if TYPE_CHECKING:
    from bridge.finetuning.predict import Prediction


@manners.command()
@click.argument("run_dir", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...", type=click.Path())
@click.option("-k", "--top", default=5, show_default=True, type=click.IntRange(1), help="How many classes to print.")
@click.option("--csv", "csv_file", type=click.Path(), help="Write a row per picture there; - is stdout.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Processes that decode pictures.")
def predict(run_dir: str, images: tuple[str, ...], top: int, csv_file: str | None, as_json: bool, workers: int) -> None:
    """Print the most likely classes of each picture, or a regression's numbers, with the model of a finetune run.

    A folder stands for the pictures in it and in its folders. A picture that cannot be read is named and counted; if
    none can be read, that is an error.
    """
    from bridge.cli.options import write_json
    from bridge.cli.progress import Progress
    from bridge.errors import FormatError
    from bridge.finetuning.predict import predictions

    made = []
    with Progress(hidden=not sys.stderr.isatty(), quiet=not sys.stderr.isatty()) as progress:
        for prediction in predictions(run_dir, images, top, workers, progress.work):
            made.append(prediction)
            if not as_json and csv_file is None:
                _print(prediction)
    bad = [prediction for prediction in made if prediction.error]
    if len(bad) == len(made):
        more = f"; and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise FormatError(f"is no picture: {bad[0].error}{more}", where=bad[0].image)
    if as_json:
        write_json([_record(prediction) for prediction in made], "-")
    if csv_file is not None:
        _write_csv(made, csv_file)
    for prediction in bad:
        click.echo(printable(f"{prediction.image}: cannot be read: {prediction.error}"), err=True)
    if bad:
        click.echo(f"{len(bad)} of {len(made)} pictures cannot be read", err=True)


def _print(prediction: Prediction) -> None:
    if prediction.error:
        return
    click.echo(printable(prediction.image))
    for entry in prediction.found:
        click.echo(f"  {entry['score']:.4f}  {entry['class']}" if "class" in entry else f"  {entry['value']:.6g}")


def _record(prediction: Prediction) -> dict[str, Any]:
    found = list(prediction.found)
    if prediction.error:
        return {"image": prediction.image, "error": prediction.error}
    if found and "value" in found[0]:
        return {"image": prediction.image, "values": [entry["value"] for entry in found]}
    return {"image": prediction.image, "classes": found}


def _write_csv(made: list[Prediction], target: str) -> None:
    """A row per picture: ``file,class,score,class_2,score_2,...``, or ``file,value,value_2,...``, and the error."""
    most = max(made, key=lambda prediction: len(prediction.found)).found
    names = [name if not place else f"{name}_{place + 1}" for place, entry in enumerate(most) for name in entry]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", *names, "error"])
    for prediction in made:
        cells = [_cell(value) for entry in prediction.found for value in entry.values()]
        rows.writerow([prediction.image, *cells, *[""] * (len(names) - len(cells)), prediction.error])
    data = text.getvalue().encode(errors="backslashreplace")
    if target == "-":
        click.echo(data.decode(), nl=False)
        return
    from bridge.files.atomic import atomic

    with atomic(target) as file:
        file.write(data)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
