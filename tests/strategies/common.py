"""What the strategies share: shapes, fields as text, and how inputs and blobs are filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**16)


def positive(rng: Any, shape: Any) -> Any:
    """Values between 0.1 and 2, for variances and the like."""
    return rng.uniform(0.1, 2, shape)


def numbers_below(stop: int) -> Callable[[Any, Any], Any]:
    """Whole numbers from 0 on."""
    return lambda rng, shape: rng.integers(0, stop, shape)


def wide(rng: Any, shape: Any) -> Any:
    """Values far to both sides of 0, whole ones among them."""
    return np.where(rng.random(shape) < 0.2, rng.integers(-7, 8, shape), rng.standard_normal(shape) * 5)


def images(
    min_side: int = 1, max_side: int = 9, channels: st.SearchStrategy[int] | None = None
) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes (N, C, H, W)."""
    side = st.integers(min_side, max_side)
    return st.tuples(st.integers(1, 3), st.integers(1, 6) if channels is None else channels, side, side)


def shapes(min_rank: int = 1, max_rank: int = 4, max_side: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of any rank."""
    return st.lists(st.integers(1, max_side), min_size=min_rank, max_size=max_rank).map(tuple)


def some_flags(draw: Any, *names: str) -> str:
    """Each of these boolean fields, true or false or left out."""
    drawn = [(name, draw(st.sampled_from(["", "true", "false"]))) for name in names]
    return " ".join(f"{name}: {value}" for name, value in drawn if value)


def repeated(name: str, values: Any) -> str:
    return " ".join(f"{name}: {value}" for value in values)
