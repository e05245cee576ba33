"""The report of a run: pictures, and one page that holds them all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.extras import pip
from bridge.files.atomic import atomic
from bridge.finetuning.selection import some
from bridge.schema import Net
from bridge.show import html
from bridge.show.html import Content, Markup, tag

if TYPE_CHECKING:
    from bridge.finetuning.evaluation import Evaluation
    from bridge.finetuning.run import Run

_SHOWN = 36
"""Misclassified images on the sheet."""
_CELLS = 24
"""Classes up to which the confusion matrix is a table."""
_ROWS = 100
"""Classes in the table."""


def write_report(run: Run, trained: Net, deploy: Net) -> None:
    """Write the pictures and ``report.html`` into the run's folder.

    Args:
        run: The run.
        trained: Its net with the trained blobs.
        deploy: That net in its form for inference.
    """
    folder = run.config.folder
    log, evaluation = list(run.outcome.history), run.evaluation
    made = _Pictures(run, log, evaluation).all(trained) if not can_draw() else {}
    for name, png in made.items():
        if name.endswith(".png"):
            with atomic(folder / name) as file:
                file.write(png)
    with atomic(folder / "report.html") as file:
        file.write(_page(run, deploy, log, evaluation, made).encode(errors="backslashreplace"))


def can_draw() -> list[str]:
    """A remark where pictures cannot be drawn; else empty."""
    if importlib.util.find_spec("matplotlib") is not None:
        return []
    return [f"no pictures: matplotlib is not installed ({pip('plot')})"]


class _Pictures:
    """The pictures of a run: file name, or for those of the page alone another name, -> PNG."""

    def __init__(self, run: Run, log: list[dict[str, Any]], evaluation: Evaluation | None) -> None:
        from bridge.finetuning.products import class_names

        self.run, self.log, self.evaluation, self.names = run, log, evaluation, class_names(run)

    def all(self, trained: Net) -> dict[str, bytes]:
        from bridge.finetuning import pictures

        made: dict[str, bytes] = {}
        if self.log:
            best = self.run.outcome.best_epoch
            made["curves.png"] = pictures.curves(self.log, best=best)
            made["loss"] = pictures.curves(self.log, ("loss",), best)
            if any("accuracy" in record for record in self.log):
                made["accuracy"] = pictures.curves(self.log, ("accuracy",), best)
        if self.evaluation is not None and self.evaluation.accuracy is not None and self.evaluation.true.ndim == 1:
            matrix = pictures.counts(self.evaluation.true, self.evaluation.predicted, len(self.names))
            made["confusion.png"] = pictures.confusion(matrix, self.names)
            made.update(self._mistakes(self.evaluation))
        weights = _first_filters(self.run.net, trained)
        if weights is not None:
            made["filters.png"] = pictures.compared_filters(*weights)
        return made

    def _mistakes(self, evaluation: Evaluation) -> dict[str, bytes]:
        from bridge.finetuning import pictures

        wrong = _wrong(evaluation)
        if not len(wrong) or self.run.validation is None:
            return {}
        true, predicted = ([self.names[k] for k in side[wrong]] for side in (evaluation.true, evaluation.predicted))
        names = self.run.validation.names
        files = [os.path.basename(names[k]) for k in wrong] if names else []
        return {"mistakes.png": pictures.mistakes(self.run.validation.images(wrong), true, predicted, files)}


def _wrong(evaluation: Evaluation) -> np.ndarray:
    """The first images that are misclassified."""
    return np.flatnonzero(evaluation.true != evaluation.predicted)[:_SHOWN]


def _first_filters(before: Net, after: Net) -> tuple[np.ndarray, np.ndarray] | None:
    """The first convolution's weight, where it sees grey or colour, before (where it was read) and after."""
    for old, new in zip(before.layers, after.layers, strict=True):
        if new.filters and "weight" in new.blobs:
            trained = new.blobs["weight"].astype(np.float32)
            stored = old.blobs["weight"].astype(np.float32) if "weight" in old.blobs else np.zeros_like(trained)
            return (stored, trained) if trained.ndim == 4 and trained.shape[1] in (1, 3) else None
    return None


def _page(
    run: Run, deploy: Net, log: list[dict[str, Any]], evaluation: Evaluation | None, made: dict[str, bytes]
) -> str:
    title = f"Fine-tuning of {run.net.name or 'a net'}"
    verdict = run.verdict
    judged = (
        (tag("p", verdict.text), tag("ul", (tag("li", cause) for cause in verdict.causes))) if verdict.causes else ()
    )
    head = tag("header", tag("p", title, class_="soft"), tag("h1", _result(log, evaluation)), judged)
    return html.page(title, head, *_sections(run, deploy, log, evaluation, made))


def _result(log: list[dict[str, Any]], evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return f"Training loss {log[-1]['loss']:.4f}, no validation" if log else "No step was made"
    if evaluation.accuracy is None:
        return f"Validation loss {evaluation.loss:.4g}"
    return str(evaluation)


def _sections(
    run: Run, deploy: Net, log: list[dict[str, Any]], evaluation: Evaluation | None, made: dict[str, bytes]
) -> Iterator[Markup]:
    from bridge.finetuning.products import use

    yield html.facts(_facts(run, log, evaluation))
    if "loss" in made:
        both = [html.image(made[name], name) for name in ("loss", "accuracy") if name in made]
        yield html.join(tag("h2", "Loss and accuracy"), tag("div", both, class_="side"))
    if evaluation is not None and evaluation.accuracy is not None:
        if evaluation.true.ndim == 1:
            matrix = _confusion(run, evaluation, made.get("confusion.png", b""))
            yield html.join(tag("h2", "Which class is taken for which"), matrix)
        yield from _classes(run, evaluation)
    if "mistakes.png" in made:
        yield html.join(tag("h2", "Misclassified images"), _mistakes(run, evaluation))
    if "filters.png" in made:
        yield tag("h2", "The first layer's filters")
        yield html.image(made["filters.png"], "filters before and after", "small")
    yield tag("h2", "How to use it")
    yield html.join((tag("h3", title), tag("pre", lines)) for title, lines in use(run, deploy).items())
    if run.notes:
        yield html.join(tag("h2", "Remarks"), tag("ul", (tag("li", note) for note in run.notes)))


def _facts(run: Run, log: list[dict[str, Any]], evaluation: Evaluation | None) -> Iterator[tuple[str, str]]:
    config, recipe, outcome = run.config, run.plan.recipe, run.outcome
    yield "model", ", ".join(config.files)
    yield "data", f"{config.data}: {len(run.train)} images for training, {len(run.validation or ())} held out"
    if config.heads:
        yield "new heads", ", ".join(config.heads)
    thaw = f", from epoch {config.unfreeze_at + 1} on nothing" if config.selection and config.unfreeze_at >= 0 else ""
    yield "frozen", (some(run.plan.stages[0].frozen) or "nothing") + thaw
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    rate = f"rate {recipe.base_lr:g} ({recipe.lr_policy})"
    yield "recipe", f"{recipe.type}, {rate}{momentum}, decay {recipe.weight_decay:g}"
    epochs = log[-1]["epoch"] + 1 if log else 0
    early = ", stopped early" if outcome.stopped else ""
    yield "length", f"{epochs} epochs, {outcome.iterations} steps of {run.plan.images_per_step} images{early}"
    if outcome.best_loss is not None:
        yield "best epoch", f"{outcome.best_epoch + 1}, with a validation loss of {outcome.best_loss:.4f}"
    if evaluation is not None:
        yield "validation loss of this model", f"{evaluation.loss:.4f}"


def _confusion(run: Run, evaluation: Evaluation, png: bytes) -> Content:
    """The confusion matrix, as a table if it is small enough to be read."""
    from bridge.finetuning.pictures import counts
    from bridge.finetuning.products import class_names

    names = class_names(run)
    if len(names) > _CELLS:
        return html.image(png, "confusion matrix", "small") if png else None
    matrix = counts(evaluation.true, evaluation.predicted, len(names))
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    short = max(map(len, names)) <= 3
    head = tag(
        "tr",
        tag("th"),
        (tag("th", name if short else str(number), title=name) for number, name in enumerate(names, 1)),
    )
    rows = (
        tag("tr", tag("th", "" if short else f"{number} ", name, class_="row"), map(_cell, matrix[number - 1], row))
        for number, (name, row) in enumerate(zip(names, shares, strict=True), 1)
    )
    return (
        tag("p", "A row for each true class, a column for what its images are taken for.", class_="soft"),
        tag("div", tag("table", head, rows, class_="matrix"), class_="wide"),
    )


def _cell(number: int, share: float) -> Markup:
    dark = "dark" if share > 0.5 else None
    return tag("td", str(number or ""), class_=dark, style=f"--share: {share:.3f}")


def _mistakes(run: Run, evaluation: Evaluation | None) -> Content:
    from bridge.finetuning.pictures import thumbnail
    from bridge.finetuning.products import class_names

    if evaluation is None or run.validation is None:
        return None
    names, wrong, files = class_names(run), _wrong(evaluation), run.validation.names
    total = int((evaluation.true != evaluation.predicted).sum())
    figures = (
        tag(
            "figure",
            html.image(thumbnail(image), files[place] if files else ""),
            tag(
                "figcaption",
                names[evaluation.true[place]],
                tag("br"),
                tag("span", f"not {names[evaluation.predicted[place]]}", class_="soft"),
                (tag("br"), tag("small", os.path.basename(files[place]))) if files else (),
            ),
        )
        for place, image in zip(wrong, run.validation.images(wrong), strict=True)
    )
    which = "All of them" if total == len(wrong) else f"{len(wrong)} of {total}"
    text = tag("p", f"{which}; below each its class, and what it was taken for.", class_="soft")
    return text, tag("div", figures, class_="sheet")


def _classes(run: Run, evaluation: Evaluation) -> Iterator[Markup]:
    """A row per class with precision and recall, the lowest recall first."""
    from bridge.finetuning.products import class_names

    names = class_names(run)
    size = len(names)
    totals, given, right = _counts(evaluation, size)
    shares = right / np.maximum(1, totals)
    order = [k for k in np.argsort(shares, kind="stable") if totals[k] or given[k]]
    head = tag("tr", (tag("th", text) for text in ("class", "right", "recall", "precision", "")))
    rows = (
        tag(
            "tr",
            tag("td", names[k]),
            tag("td", f"{right[k]} of {totals[k]}", class_="number"),
            tag("td", f"{shares[k]:.1%}" if totals[k] else "-", class_="number"),
            tag("td", f"{right[k] / given[k]:.1%}" if given[k] else "-", class_="number"),
            tag("td", tag("meter", value=f"{shares[k]:.4f}")),
        )
        for k in order[:_ROWS]
    )
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="narrow")
    text = "Recall is the share of a class that is recognised, precision the share of what is named so that is right."
    yield html.join((tag("h2", "Class by class, the worst first"), tag("p", text, class_="soft"), table))
    if len(order) > _ROWS:
        yield tag("p", f"and {len(order) - _ROWS} more", class_="soft")


def _counts(evaluation: Evaluation, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class its images, those that are taken for it, and those of them that are right."""
    true, predicted = evaluation.true, evaluation.predicted
    if true.ndim > 1:
        return true.sum(axis=0), predicted.sum(axis=0), (true & predicted).sum(axis=0)
    every = (true, predicted, true[true == predicted])
    totals, given, right = (np.bincount(side, minlength=size) for side in every)
    return totals, given, right
