"""Pictures of a run, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

TRAIN, VALIDATION = "#4c72b0", "#c44e52"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _png(canvas: Any) -> bytes:
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def curves(log: Sequence[dict[str, Any]]) -> bytes:
    """Loss and accuracy over iterations, training and validation.

    Args:
        log: The records of log.jsonl.
    """
    figure, canvas = _figure(9, 3.6)
    for place, name in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(1, 2, place + 1)
        steps = np.array([record["iteration"] for record in log])
        values = np.array([record[name] for record in log])
        axes.plot(steps, values, color=TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values, max(1, len(values) // 50)), color=TRAIN, label="training")
        held = [(r["iteration"], r[f"validation_{name}"]) for r in log if f"validation_{name}" in r]
        if held:
            axes.plot(*zip(*held, strict=True), color=VALIDATION, marker="o", markersize=3, label="validation")
        axes.set_xlabel("iteration")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(canvas)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value and up to ``width - 1`` before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def confusion(true: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> bytes:
    """The confusion matrix, a row per true class."""
    size = len(classes)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (true, predicted), 1)
    side = min(12.0, 2.5 + 0.4 * size)
    figure, canvas = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    if size <= 30:
        for row, column in np.argwhere(counts):
            dark = counts[row, column] > counts[row].sum() / 2
            axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black", fontsize=8)
        axes.set_xticks(range(size), classes, rotation=90)
        axes.set_yticks(range(size), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _png(canvas)


def filters(before: np.ndarray, after: np.ndarray) -> bytes:
    """The first layer's filters before and after, each side scaled alike.

    Args:
        before, after: (O, 1 or 3, H, W).
    """
    figure, canvas = _figure(9, 4.6)
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    for place, (title, weight) in enumerate((("before", before), ("after", after))):
        axes = figure.add_subplot(1, 2, place + 1)
        sheet = contact_sheet((weight - low) / max(high - low, 1e-12))
        axes.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet[..., ::-1], cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    return _png(canvas)


def contact_sheet(tiles: np.ndarray) -> np.ndarray:
    """Tiles (n, C, H, W) side by side with gaps, (rows, columns, C)."""
    count, channels, height, width = tiles.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), tiles.dtype)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = tile.transpose(1, 2, 0)
    return sheet


def mistakes(images: np.ndarray, true: Sequence[str], predicted: Sequence[str]) -> bytes:
    """Misclassified images on one sheet, each with its true and its predicted class.

    Args:
        images: (n, C, H, W) uint8, or float of any range.
        true, predicted: Names of classes.
    """
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure, canvas = _figure(9, 1.35 * rows)
    for index, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, index + 1)
        shown = image.astype(np.float32)
        shown = (shown - shown.min()) / max(float(shown.max() - shown.min()), 1e-12)
        axes.imshow(shown[0] if len(shown) != 3 else shown[::-1].transpose(1, 2, 0), cmap="gray")
        axes.set_title(f"{true[index]} as {predicted[index]}", fontsize=7)
        axes.set_axis_off()
    return _png(canvas)
