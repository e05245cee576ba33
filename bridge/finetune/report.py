"""The report of a run: pictures, and one page that holds them all."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.schema import Net
from bridge.writers import atomic

if TYPE_CHECKING:
    from bridge.finetune.run import Run

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; background: #fff; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }}
pre {{ background: #f4f4f4; padding: .8rem; overflow-x: auto; }}
.verdict {{ font-size: 1.4rem; }}
</style></head><body>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
<table>{facts}</table>
{pictures}
<h2>Using it</h2><pre>{use}</pre>
{notes}
</body></html>
"""


def write_report(run: Run, trained: Net) -> None:
    """Write the pictures and ``report.html`` into the run's folder.

    Args:
        run: The run.
        trained: Its net with the trained blobs.
    """
    folder = run.config.folder
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    made = _pictures(run, trained, log)
    for name, (_, png) in made.items():
        with atomic(folder / name) as file:
            file.write(png)
    page = _page(run, log, made)
    with atomic(folder / "report.html") as file:
        file.write(page.encode())


def _pictures(run: Run, trained: Net, log: list[dict[str, Any]]) -> dict[str, tuple[str, bytes]]:
    """File name -> (heading, PNG)."""
    if importlib.util.find_spec("matplotlib") is None:
        run.notes.append("no pictures: matplotlib is not installed (pip install 'weight-bridge[plot]')")
        return {}
    from bridge.finetune import pictures
    from bridge.finetune.products import class_names

    made = {"curves.png": ("Loss and accuracy", pictures.curves(log))} if log else {}
    if run.validation is not None and run.loop.validation is not None:
        _, _, found = run.loop.evaluate(run.loop.validation)
        true, names = run.validation.y, class_names(run)
        names += [str(n) for n in range(len(names), int(max(true.max(), found.max())) + 1)]
        made["confusion.png"] = ("Confusion", pictures.confusion(true, found, names))
        wrong = np.flatnonzero(found != true)[:40]
        if len(wrong):
            labels = [[names[k] for k in side[wrong]] for side in (true, found)]
            made["mistakes.png"] = ("Misclassified", pictures.mistakes(run.validation.x[wrong], *labels))
    weights = _first_filters(run.net, trained)
    if weights is not None:
        made["filters.png"] = ("The first layer's filters", pictures.filters(*weights))
    return made


def _first_filters(before: Net, after: Net) -> tuple[np.ndarray, np.ndarray] | None:
    for old, new in zip(before.layers, after.layers, strict=True):
        if "weight" in old.blobs and old.type == "Convolution":
            pair = old.blobs["weight"], new.blobs["weight"]
            seen = pair[0].ndim == 4 and pair[0].shape[1] in (1, 3)
            return (pair[0].astype(np.float32), pair[1].astype(np.float32)) if seen else None
    return None


def _page(run: Run, log: list[dict[str, Any]], made: dict[str, tuple[str, bytes]]) -> str:
    from bridge.finetune.products import USE

    held = [record for record in log if "validation_accuracy" in record]
    verdict = f"{held[-1]['validation_accuracy']:.1%} of held-out images right" if held else "trained without validation"
    facts = {
        "model": ", ".join(run.config.files),
        "data": f"{run.config.data}: {len(run.train)} for training, {len(run.validation or ())} held out",
        "frozen": ", ".join(run.config.freeze) or "nothing",
        "recipe": f"{run.config.recipe.type}, rate {run.config.recipe.base_lr:g} ({run.config.recipe.lr_policy})",
        "iterations": str(run.loop.state["iteration"]),
    }
    figures = "".join(
        f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in made.values()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in run.notes)
    return _PAGE.format(
        title=f"Fine-tuning of {html.escape(run.net.name or 'a net')}",
        verdict=html.escape(verdict),
        facts="".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items()),
        pictures=figures,
        use=html.escape(USE % {"data": run.loop.objective.data}),
        notes=f"<h2>Remarks</h2><ul>{notes}</ul>" if notes else "",
    )
