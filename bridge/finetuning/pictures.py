"""Pictures of a run, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.show.figures import figure_of, png_of, styled
from bridge.show.pictures import contact_sheet

TRAIN, VALIDATION = "#2f6db3", "#d1495b"
_LONG = 18
"""Most characters of a name that are shown."""


def curves(log: Sequence[dict[str, Any]], names: Sequence[str] = ("loss", "accuracy"), best: int = -1) -> bytes:
    """Loss and accuracy over epochs, training and validation.

    Args:
        log: The records of log.jsonl.
        names: Which of the two.
        best: The best epoch, to be marked; negative is none.
    """
    names = [name for name in names if any(name in record for record in log)]
    with styled():
        figure = figure_of(5.2 * len(names), 3.6)
        for place, name in enumerate(names):
            _curve(figure.add_subplot(1, len(names), place + 1), log, name, best)
        return png_of(figure)


def _curve(axes: Any, log: Sequence[dict[str, Any]], name: str, best: int) -> None:
    epochs = _epochs(log)
    factor = 100 if name == "accuracy" else 1
    values = np.array([factor * record[name] for record in log])
    axes.plot(epochs, values, color=TRAIN, alpha=0.2, linewidth=0.8)
    axes.plot(epochs, smooth(values, max(1, len(values) // 40)), color=TRAIN, linewidth=1.8, label="training")
    key = f"validation_{name}"
    pairs = zip(epochs, log, strict=True)
    held = [(epoch, factor * record[key], record["epoch"]) for epoch, record in pairs if key in record]
    if held:
        x, y, _ = zip(*held, strict=True)
        marker = "o" if len(held) <= 40 else None
        axes.plot(x, y, color=VALIDATION, marker=marker, markersize=4, linewidth=1.8, label="validation")
    chosen = [point for point in held if point[2] == best]
    if chosen:
        ring = {"color": VALIDATION, "markersize": 11, "fillstyle": "none", "label": "best epoch"}
        axes.plot(*chosen[0][:2], "o", **ring)
    axes.set_title("accuracy, %" if factor == 100 else name)
    axes.set_xlabel("epoch")
    axes.grid(visible=True)
    axes.legend(fontsize=9)
    if factor == 1 and len(values):
        axes.set_ylim(0, _top(values, [y for _, y, _ in held]))


def _epochs(log: Sequence[dict[str, Any]]) -> np.ndarray:
    """Where each step stands, in epochs that are done after it."""
    numbers = np.array([record["epoch"] for record in log])
    if not len(numbers):
        return np.zeros(0)
    counts = np.bincount(numbers)
    full = counts.max()
    place = np.arange(len(numbers)) - np.concatenate([[0], np.cumsum(counts)])[numbers]
    return np.asarray(numbers + (place + 1) / full)


def _top(values: np.ndarray, held: Sequence[float]) -> float:
    """The upper end of the losses' axis: a first step out of all proportion does not flatten the rest."""
    values, held = values[np.isfinite(values)], [value for value in held if np.isfinite(value)]
    if not len(values):
        return 1.0
    usual = float(np.quantile(values, 0.98)) if len(values) > 50 else float(values.max())
    return 1.08 * max(usual, *held, 1e-6) if held else 1.08 * max(usual, 1e-6)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value and up to ``width - 1`` before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def counts(true: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
    """The confusion matrix, a row per true class."""
    made = np.zeros((size, size), int)
    np.add.at(made, (true, predicted), 1)
    return made


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """The confusion matrix as a picture; numbers in the cells where they are legible."""
    size = len(classes)
    side = float(np.clip(2.2 + 0.42 * size, 3.6, 11.0))
    with styled():
        columns, rows = _ticks(classes)
        figure = figure_of(side + (2.2 if rows != columns and size <= 60 else 0), side)
        axes = figure.add_subplot()
        shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if size <= 24:
            for row, column in np.argwhere(matrix):
                color = "white" if shares[row, column] > 0.55 else "#1c2126"
                axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=9)
        if size <= 60:
            small = 10 if size <= 24 else 8 if size <= 40 else 7
            axes.set_xticks(range(size), columns, rotation=90, fontsize=small)
            axes.set_yticks(range(size), rows, fontsize=small)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        return png_of(figure)


def _ticks(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels of columns and rows: the names; where they are long, columns have numbers and rows both."""
    if max(map(len, classes)) <= _LONG:
        return list(classes), list(classes)
    return [str(number) for number, _ in enumerate(classes, 1)], [
        f"{_short(name, 2 * _LONG)}  {number}" for number, name in enumerate(classes, 1)
    ]


def _short(name: str, length: int = _LONG) -> str:
    """A name, shortened in its middle where it is long: names often differ at their ends. A file's may be no text."""
    name = name.encode(errors="backslashreplace").decode()
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"


def compared_filters(before: np.ndarray, after: np.ndarray) -> bytes:
    """The first layer's filters before and after, both on one scale, and what changed, on its own.

    Args:
        before: (O, 1 or 3, H, W).
        after: Of the same shape.
    """
    change = after - before
    panels = [("before", before, _reach(before, after)), ("after", after, _reach(before, after))]
    if change.any():
        panels.append(("change, enlarged", change, _reach(change)))
    with styled():
        figure = figure_of(3.1 * len(panels), 3.4)
        figure.get_layout_engine().set(wspace=0.08)
        for place, (title, weight, reach) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            sheet = contact_sheet(0.5 + weight / (2 * reach), int(np.ceil(np.sqrt(len(weight)))), blank=1)
            axes.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet[..., ::-1], cmap="gray", vmin=0, vmax=1)
            axes.set_title(title)
            axes.set_axis_off()
        return png_of(figure)


def _reach(*weights: np.ndarray) -> float:
    """The largest absolute value, at which a filter is black or white."""
    return max(1e-12, *(float(np.abs(weight).max(initial=0)) for weight in weights))


def mistakes(
    images: np.ndarray, true: Sequence[str], predicted: Sequence[str], files: Sequence[str] = (), columns: int = 6
) -> bytes:
    """Misclassified images on one sheet, each with its true and its predicted class and its file.

    Args:
        images: (n, C, H, W) uint8, or float of any range.
        true: Names of their classes.
        predicted: Names of what they were taken for.
        files: Names of their files, if they have any.
        columns: How many stand side by side.
    """
    names = [f"\n{_short(name)}" for name in files] or [""] * len(images)
    pairs = zip(true, predicted, names, strict=True)
    return sheet(images, [f"{_short(right)}\nnot {_short(wrong, 15)}{file}" for right, wrong, file in pairs], columns)


def sheet(images: np.ndarray, titles: Sequence[str], columns: int = 6) -> bytes:
    """Images on one sheet, each below its title.

    Args:
        images: (n, C, H, W) uint8, or float of any range.
        titles: A few short lines for each.
        columns: How many stand side by side.
    """
    rows = max(1, -(-len(images) // columns))
    tallest = max((title.count("\n") for title in titles), default=0)
    with styled():
        figure = figure_of(1.7 * columns, (1.85 + 0.15 * tallest) * rows)
        for index, image in enumerate(images):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.imshow(_shown(image), cmap="gray", vmin=0, vmax=1)
            title = "\n".join(_short(line) for line in titles[index].split("\n"))
            axes.set_title(title, fontsize=9, fontweight="normal", loc="center")
            axes.set_axis_off()
        return png_of(figure)


def rate_search(
    rates: Sequence[float], losses: Sequence[float], smooth_losses: Sequence[float], suggestion: float | None
) -> bytes:
    """The loss over a rising learning rate, with the rate that is suggested."""
    with styled():
        figure = figure_of(6.4, 3.8)
        axes = figure.add_subplot()
        axes.plot(rates, losses, color=TRAIN, alpha=0.3, linewidth=0.9)
        axes.plot(rates, smooth_losses, color=TRAIN, linewidth=1.8, label="training loss")
        if suggestion is not None:
            axes.axvline(suggestion, color=VALIDATION, linewidth=1.4, label=f"suggested rate {suggestion:g}")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.6 * losses[0])
        axes.set_xlabel("learning rate")
        axes.set_title("loss while the rate rises")
        axes.grid(visible=True)
        axes.legend(fontsize=9)
        return png_of(figure)


def thumbnail(image: np.ndarray, side: int = 112) -> bytes:
    """One image, (C, H, W) as for :func:`mistakes`, no larger than ``side``."""
    from PIL import Image

    pixels = (255 * _shown(image)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _shown(image: np.ndarray) -> np.ndarray:
    """An image for ``imshow``: (H, W) or (H, W, 3), 0 to 1."""
    values = image.astype(np.float32)
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(values.min()), float(values.max()))
    values = (values - low) / max(high - low, 1e-12)
    return values[0] if len(values) != 3 else values[::-1].transpose(1, 2, 0)
