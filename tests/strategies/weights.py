"""Arrays of any bits, and grouped weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.strategies.common import SEEDS


@st.composite
def grouped_weights(
    draw: Any, dtypes: tuple[str, ...] = ("f2", "f4", "f8"), space: tuple[int, int] = (0, 3)
) -> tuple[np.ndarray, int]:
    """A weight of any bits (signs of zero, payloads of NaN) and its number of groups.

    Args:
        draw: Hypothesis's.
        dtypes: Which types it may have.
        space: How many spatial axes, at least and at most.
    """
    group, rows, columns = (draw(st.integers(1, 4)) for _ in range(3))
    shape = (group * rows, columns, *draw(st.lists(st.integers(1, 3), min_size=space[0], max_size=space[1])))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    raw = draw(st.binary(min_size=dtype.itemsize * int(np.prod(shape)), max_size=dtype.itemsize * int(np.prod(shape))))
    weight = np.frombuffer(raw, dtype).reshape(shape).copy()
    special = draw(st.lists(st.sampled_from([0.0, -0.0, np.nan, np.inf]), max_size=4))
    weight.reshape(-1)[: len(special)] = special[: weight.size]
    return weight, group


@st.composite
def grouped_convolutions(draw: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """An input, a weight, and the groups; of small whole numbers, so that sums are exact."""
    group, rows, columns, batch = (draw(st.integers(1, 3)) for _ in range(4))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    space = tuple(k + draw(st.integers(0, 3)) for k in kernel)
    rng = np.random.default_rng(draw(SEEDS))
    x = rng.integers(-9, 10, (batch, group * columns, *space)).astype(np.float64)
    return x, rng.integers(-9, 10, (group * rows, columns, *kernel)).astype(np.float64), group


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """Any bits of a blob's types, in any shape: signs of zero, payloads of NaN, no values at all."""
    dtype = np.dtype(draw(st.sampled_from(["f2", "f4", "f8"])))
    shape = draw(st.lists(st.integers(0, 3), max_size=5))
    size = dtype.itemsize * int(np.prod(shape))
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
