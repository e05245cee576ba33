"""The report of a run: pictures, and one page that holds them all."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.files.atomic import atomic
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.finetuning.evaluation import Evaluation
    from bridge.finetuning.run import Run

_STYLE = """
:root { --back: #fff; --text: #1c2126; --soft: #5b6570; --line: #d8dde2; --good: #1f7a4d; --track: #edf0f2;
  --blue: #1c5fa8; }
@media (prefers-color-scheme: dark) { :root { --back: #14181c; --text: #e4e8ec; --soft: #9aa5af; --line: #343b42;
  --good: #4fbf86; --track: #262c32; --blue: #2f7fd6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem 1rem 3rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header { border-left: .5rem solid var(--good); padding-left: 1rem; margin-bottom: 1.5rem; }
h1 { margin: 0; font-size: 2.2rem; line-height: 1.2; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; }
h3 { margin: 1rem 0 .25rem; font-size: 1rem; font-weight: 600; } p { margin: .25rem 0; } .soft { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
img.small { width: auto; max-width: 100%; } img { border-radius: .4rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
figure { margin: 0; font-size: .85rem; line-height: 1.3; } figure img { image-rendering: pixelated; }
.wide { overflow-x: auto; } .matrix { width: auto; max-width: none; } .matrix th, .matrix td { border: 0;
  padding: .15rem .3rem; text-align: center; min-width: 2.1rem; } .matrix th.row { text-align: left;
  white-space: nowrap; font-weight: 400; } .matrix td { border-radius: .2rem;
  background: color-mix(in srgb, var(--blue) calc(var(--share) * 100%), var(--track)); }
.matrix td.dark { color: #fff; }
pre { background: var(--track); padding: .7rem .9rem; margin: 0; overflow-x: auto; border-radius: .4rem;
  font: 13px/1.5 ui-monospace, monospace; overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; max-width: 36rem; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } .number { text-align: right; white-space: nowrap; }
meter { width: 100%; min-width: 5rem; height: .8rem; } ul { padding-left: 1.25rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } h1 { font-size: 1.7rem; } }
"""
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
    log, judged = list(run.outcome.history), run.evaluation
    made = _Pictures(run, log, judged).all(trained) if not can_draw() else {}
    for name, png in made.items():
        if name.endswith(".png"):
            with atomic(folder / name) as file:
                file.write(png)
    with atomic(folder / "report.html") as file:
        file.write(_page(run, deploy, log, judged, made).encode(errors="backslashreplace"))


def can_draw() -> list[str]:
    """A remark where pictures cannot be drawn; else empty."""
    if importlib.util.find_spec("matplotlib") is not None:
        return []
    return ["no pictures: matplotlib is not installed (pip install 'weight-bridge[plot]')"]


class _Pictures:
    """The pictures of a run: file name, or for those of the page alone another name, -> PNG."""

    def __init__(self, run: Run, log: list[dict[str, Any]], judged: Evaluation | None) -> None:
        from bridge.finetuning.products import class_names

        self.run, self.log, self.judged, self.names = run, log, judged, class_names(run)

    def all(self, trained: Net) -> dict[str, bytes]:
        from bridge.finetuning import pictures

        made: dict[str, bytes] = {}
        if self.log:
            best = self.run.outcome.best_epoch
            made["curves.png"] = pictures.curves(self.log, best=best)
            made["loss"] = pictures.curves(self.log, ("loss",), best)
            if any("accuracy" in record for record in self.log):
                made["accuracy"] = pictures.curves(self.log, ("accuracy",), best)
        if self.judged is not None and self.judged.accuracy is not None:
            matrix = pictures.counts(self.judged.true, self.judged.predicted, len(self.names))
            made["confusion.png"] = pictures.confusion(matrix, self.names)
            made.update(self._mistakes(self.judged))
        weights = _first_filters(self.run.net, trained)
        if weights is not None:
            made["filters.png"] = pictures.filters(*weights)
        return made

    def _mistakes(self, judged: Evaluation) -> dict[str, bytes]:
        from bridge.finetuning import pictures

        wrong = _wrong(judged)
        if not len(wrong) or self.run.validation is None:
            return {}
        true, predicted = ([self.names[k] for k in side[wrong]] for side in (judged.true, judged.predicted))
        return {"mistakes.png": pictures.mistakes(self.run.validation.images(wrong), true, predicted)}


def _wrong(judged: Evaluation) -> np.ndarray:
    """The first of this process's images that are misclassified."""
    wrong = np.flatnonzero(judged.true != judged.predicted)
    return wrong[wrong < judged.own][:_SHOWN]


def _first_filters(before: Net, after: Net) -> tuple[np.ndarray, np.ndarray] | None:
    """The first convolution's weight, where it sees grey or colour, before (where it was read) and after."""
    for old, new in zip(before.layers, after.layers, strict=True):
        if new.filters and "weight" in new.blobs:
            trained = new.blobs["weight"].astype(np.float32)
            stored = old.blobs["weight"].astype(np.float32) if "weight" in old.blobs else np.zeros_like(trained)
            return (stored, trained) if trained.ndim == 4 and trained.shape[1] in (1, 3) else None
    return None


def _page(run: Run, deploy: Net, log: list[dict[str, Any]], judged: Evaluation | None, made: dict[str, bytes]) -> str:
    title = f"Fine-tuning of {run.net.name or 'a net'}"
    body = "\n".join(_sections(run, deploy, log, judged, made))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<header><p class="soft">{escape(title)}</p><h1>{escape(_verdict(log, judged))}</h1></header>\n'
        f"{body}\n</body></html>\n"
    )


def _verdict(log: list[dict[str, Any]], judged: Evaluation | None) -> str:
    if judged is None:
        return f"Training loss {log[-1]['loss']:.4f}, no validation" if log else "No step was made"
    if judged.accuracy is None:
        return f"Validation loss {judged.loss:.4g}"
    return str(judged)


def _sections(
    run: Run, deploy: Net, log: list[dict[str, Any]], judged: Evaluation | None, made: dict[str, bytes]
) -> Iterator[str]:
    from bridge.finetuning.products import use

    yield _list(_facts(run, log, judged))
    if "loss" in made:
        both = [_image(made[name], name) for name in ("loss", "accuracy") if name in made]
        yield f'<h2>Loss and accuracy</h2><div class="side">{"".join(both)}</div>'
    if judged is not None and judged.accuracy is not None:
        yield "<h2>Which class is taken for which</h2>" + _confusion(run, judged, made.get("confusion.png", b""))
        yield from _classes(run, judged)
    if "mistakes.png" in made:
        yield "<h2>Misclassified images</h2>" + _mistakes(run, judged)
    if "filters.png" in made:
        yield "<h2>The first layer's filters</h2>" + _image(made["filters.png"], "filters before and after", "small")
    yield "<h2>How to use it</h2>" + "".join(
        f"<h3>{escape(title)}</h3><pre>{escape(lines)}</pre>" for title, lines in use(run, deploy).items()
    )
    if run.notes:
        yield "<h2>Remarks</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in run.notes) + "</ul>"


def _facts(run: Run, log: list[dict[str, Any]], judged: Evaluation | None) -> Iterator[tuple[str, str]]:
    config, recipe, outcome = run.config, run.plan.recipe, run.outcome
    yield "model", ", ".join(config.files)
    yield "data", f"{config.data}: {len(run.train)} images for training, {len(run.validation or ())} held out"
    if config.heads:
        yield "new heads", ", ".join(config.heads)
    thaw = f", from epoch {config.unfreeze_at + 1} on nothing" if config.freeze and config.unfreeze_at >= 0 else ""
    yield "frozen", (", ".join(config.freeze) or "nothing") + thaw
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    rate = f"rate {recipe.base_lr:g} ({recipe.lr_policy})"
    yield "recipe", f"{recipe.type}, {rate}{momentum}, decay {recipe.weight_decay:g}"
    epochs = log[-1]["epoch"] + 1 if log else 0
    early = ", stopped early" if outcome.stopped else ""
    yield "length", f"{epochs} epochs, {outcome.iterations} steps of {run.plan.images_per_step} images{early}"
    if outcome.best_loss is not None:
        yield "lowest validation loss", f"{outcome.best_loss:.4f}, after epoch {outcome.best_epoch + 1}"
    if judged is not None:
        yield "validation loss of this model", f"{judged.loss:.4f}"


def _confusion(run: Run, judged: Evaluation, png: bytes) -> str:
    """The confusion matrix, as a table where it is small enough to be read."""
    from bridge.finetuning.pictures import counts
    from bridge.finetuning.products import class_names

    names = class_names(run)
    if len(names) > _CELLS:
        return _image(png, "confusion matrix", "small") if png else ""
    matrix = counts(judged.true, judged.predicted, len(names))
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    short = max(map(len, names)) <= 3
    head = "".join(
        f'<th title="{escape(name)}">{escape(name) if short else number}</th>' for number, name in enumerate(names, 1)
    )
    rows = [
        f'<tr><th class="row">{"" if short else f"{number} "}{escape(name)}</th>'
        + "".join(map(_cell, matrix[number - 1], shares[number - 1]))
        for number, name in enumerate(names, 1)
    ]
    text = '<p class="soft">A row for each true class, a column for what its images are taken for.</p>'
    return (
        f'{text}<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{"</tr>".join(rows)}</tr></table></div>'
    )


def _cell(number: int, share: float) -> str:
    dark = ' class="dark"' if share > 0.5 else ""
    return f'<td{dark} style="--share: {share:.3f}">{number or ""}</td>'


def _mistakes(run: Run, judged: Evaluation | None) -> str:
    from bridge.finetuning.pictures import thumbnail
    from bridge.finetuning.products import class_names

    if judged is None or run.validation is None:
        return ""
    names, wrong = class_names(run), _wrong(judged)
    total = int((judged.true != judged.predicted).sum())
    made = [
        f"<figure>{_image(thumbnail(image), run.validation.names[place] if run.validation.names else '')}"
        f"<figcaption>{escape(names[judged.true[place]])}<br>"
        f'<span class="soft">not {escape(names[judged.predicted[place]])}</span></figcaption></figure>'
        for place, image in zip(wrong, run.validation.images(wrong), strict=True)
    ]
    which = "All of them" if total == len(wrong) else f"{len(wrong)} of {total}"
    text = f'<p class="soft">{which}; below each its class, and what it was taken for.</p>'
    return f'{text}<div class="sheet">{"".join(made)}</div>'


def _classes(run: Run, judged: Evaluation) -> Iterator[str]:
    """A row per class, the worst first."""
    from bridge.finetuning.products import class_names

    names = class_names(run)
    totals = np.bincount(judged.true, minlength=len(names))
    right = np.bincount(judged.true[judged.true == judged.predicted], minlength=len(names))
    shares = right / np.maximum(1, totals)
    order = [k for k in np.argsort(shares, kind="stable") if totals[k]]
    rows = "".join(
        f'<tr><td>{escape(names[k])}</td><td class="number">{right[k]} of {totals[k]}</td>'
        f'<td class="number">{shares[k]:.1%}</td><td><meter value="{shares[k]:.4f}"></meter></td></tr>'
        for k in order[:_ROWS]
    )
    more = f'<p class="soft">and {len(order) - _ROWS} more</p>' if len(order) > _ROWS else ""
    yield f"<h2>Class by class, the worst first</h2><table><tbody>{rows}</tbody></table>{more}"


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"


def _image(png: bytes, alt: str, kind: str = "") -> str:
    return f'<img class="{kind}" alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
