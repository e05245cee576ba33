"""What the report shows of a net's weights: histograms, and the kernels of the first layer."""

from __future__ import annotations

import numpy as np

from bridge.schema import Net
from bridge.show.pictures import kernel_sheet, png

BINS = 32
_MOST = 1 << 20
"""Values of a blob that a histogram is made of; of more, every n-th is taken."""


def histogram(array: np.ndarray) -> tuple[list[int], float, float]:
    """Counts of the finite values in BINS equal steps, and where the steps begin and end."""
    flat = array.reshape(-1)[:: max(1, array.size // _MOST)].astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return [0] * BINS, 0.0, 0.0
    low, high = float(flat.min()), float(flat.max())
    margin = max(abs(low), abs(high)) * 1e-6 or 1.0  # values that are all equal get a range too
    counts, _ = np.histogram(flat, BINS, (low - margin, high + margin))
    return [int(count) for count in counts], low, high


def kernels(net: Net, most: int = 64) -> tuple[str, bytes] | None:
    """The kernels of the first layer that has two-dimensional ones, as a picture.

    Args:
        net: The net.
        most: How many kernels are shown.

    Returns:
        The layer's name, and a PNG; ``None`` if there is no such layer.
    """
    for layer in net.layers:
        if "weight" in layer.blobs and len(layer.blobs.blob("weight").shape) == 4:
            weight = layer.blobs["weight"][:most]
            if min(weight.shape) and max(weight.shape[2:]) > 1:
                return layer.name, png(kernel_sheet(weight))
    return None
