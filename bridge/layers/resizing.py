"""What resizing layers share: rows and columns of the top as weighted sums of those of the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, OnnxBuilder


def weighted_onnx(g: OnnxBuilder, x: str, rows: np.ndarray, columns: np.ndarray) -> str:
    """``rows @ x @ columns^T`` for the last two axes.

    Args:
        g: The builder.
        x: (N, C, H, W).
        rows: (new H, H) float32.
        columns: (new W, W) float32.
    """
    return str(g.MatMul(g.const(rows), g.MatMul(x, g.const(np.ascontiguousarray(columns.T)))))


def weighted_chainer(F: ChainerFunctions, x: Any, rows: np.ndarray, columns: np.ndarray) -> Any:
    """The same for a variable."""
    wide = F.tensordot(x, x.xp.asarray(columns), axes=([3], [1]))  # (N, C, H, new W)
    return F.transpose(F.tensordot(wide, x.xp.asarray(rows), axes=([2], [1])), (0, 1, 3, 2))


def linear_weights(places: np.ndarray, extent: int) -> np.ndarray:
    """(places, extent) float32: each row holds the weights of the two samples around a place.

    Args:
        places: float32, each within 0 to ``extent - 1``.
        extent: How many samples there are.
    """
    first = np.clip(np.floor(places).astype(np.int64), 0, max(extent - 2, 0))
    part = (places - first).astype(np.float32)
    weights = np.zeros((len(places), extent), np.float32)
    index = np.arange(len(places))
    weights[index, first] = 1 - part
    if extent > 1:
        weights[index, first + 1] += part
    return weights
